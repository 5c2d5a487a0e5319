"""Checks which models share a vector space, and which may answer for others."""

from collections.abc import Mapping, Sequence

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError
from serve_app.models import ModelSpec


def check_spaces(models: Sequence[ModelConfig], specs: Mapping[str, ModelSpec]) -> None:
    """Checks the spaces of the models, as far as they are known.

    Args:
        models: all models.
        specs: the known ones, by name.

    Raises:
        ConfigurationError: two models are the same and not in one chain, or a `fallback` is of
            another space without `allow_space_change`, or a model spills over to one.
    """
    chains = [{model.name, *model.fallback} for model in models]
    first = dict[str, str]()  # space → the first model that has it
    for name, spec in specs.items():
        other = first.setdefault(spec.space_id, name)
        if name != other and not any({name, other} <= chain for chain in chains):
            raise ConfigurationError(
                f"The models {other!r} and {name!r} are the same, with the same settings. "
                "Keep one of them, and list the other name in its `aliases`. If one of them is to "
                "answer while the other fails, list its name in the other's `fallback`."
            )
    for model in models:
        fallbacks = [specs[name] for name in model.fallback if name in specs]
        if model.name in specs:
            _check_chain(model, specs[model.name], fallbacks)


def _check_chain(model: ModelConfig, spec: ModelSpec, fallbacks: Sequence[ModelSpec]) -> None:
    changed: ModelSpec | None = None
    for fallback in fallbacks:
        if fallback.space_id == spec.space_id:
            if changed is not None:
                raise ConfigurationError(
                    f"`fallback` of {spec.name} lists {changed.name}, which is of another space, "
                    f"before {fallback.name}. List those of the same space first."
                )
            continue
        changed = fallback
        if model.spill_over_after_s is not None and fallback.name == model.fallback[0]:
            raise ConfigurationError(
                f"{spec.name} can't spill over to {fallback.name}, whose space is "
                f"{fallback.space_id}, not {spec.space_id}: clients would get vectors of both. Set "
                "the same source, precision and limits in both entries, such as `precision: fp32`, "
                "or leave `spill_over_after_s` out."
            )
        if not model.allow_space_change:
            raise ConfigurationError(
                f"`fallback` of {spec.name} lists {fallback.name}, whose vectors can't be compared "
                f"with its own: their space is {fallback.space_id}, not {spec.space_id}. Set the "
                "same source, precision and limits in both entries, or leave it out. If all "
                "clients read the header `x-embedding-space`, you may set `allow_space_change: "
                "true`."
            )
        if not {*spec.tasks} & {*fallback.tasks}:
            raise ConfigurationError(
                f"`fallback` of {spec.name} lists {fallback.name}, which supports none of its "
                f"tasks: {', '.join(spec.tasks)}. Leave it out."
            )
