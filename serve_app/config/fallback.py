"""Checks of the chains of models that answer for each other, as far as the settings show."""

from collections.abc import Mapping, Sequence

from serve_app.config.model import ModelConfig


def check_fallbacks(models: Sequence[ModelConfig]) -> None:
    """Checks that chains name other models that are served, each once, and don't form a circle.

    And that the next model of those that spill over runs elsewhere.

    Raises:
        ValueError: one doesn't.
    """
    by_name = {model.name: model for model in models}
    for model in models:
        for name in model.fallback:
            _check_name(model, name, by_name)
        if len({*model.fallback}) < len(model.fallback):
            raise ValueError(f"`fallback` of {model.name} lists a model twice. Keep the first.")
        if model.spill_over_after_s is not None:
            _check_spill_over(model, by_name)
    for model in models:
        _check_circle([model.name], by_name)


def check_one_process(models: Sequence[ModelConfig], cause: str) -> None:
    """Checks that no model spills over, because one process runs all of them.

    Args:
        models: all models.
        cause: the setting or option that has this effect.

    Raises:
        ValueError: one does.
    """
    for model in models:
        if model.spill_over_after_s is not None:
            raise ValueError(
                f"With {cause} one process runs all models, so {model.name} has nowhere to spill "
                "over to: leave `spill_over_after_s` out, or run the service on Ray with "
                "`topology: separate`."
            )


def _check_name(model: ModelConfig, name: str, by_name: Mapping[str, ModelConfig]) -> None:
    if name == model.name:
        raise ValueError(
            f"`fallback` of {name} lists the model itself. Give a second engine of it an entry and "
            "a name of its own, and list that name."
        )
    if name not in by_name:
        aliased = next((m.name for m in by_name.values() if name in m.aliases), None)
        known = f"its name is {aliased!r}" if aliased else f"served are {', '.join(by_name)}"
        raise ValueError(f"`fallback` of {model.name} lists {name!r}, which is no model: {known}.")


def _check_spill_over(model: ModelConfig, by_name: Mapping[str, ModelConfig]) -> None:
    if not model.fallback:
        raise ValueError(
            f"`spill_over_after_s` of {model.name} needs a model that takes its texts: give a "
            "second entry with the same `source` a `deployment` of its own, and list its name in "
            "`fallback`."
        )
    following = by_name[model.fallback[0]]
    if model.is_remote or following.is_remote:
        name = model.name if model.is_remote else following.name
        raise ValueError(
            f"A provider runs {name}, whose speed nobody can measure: leave `spill_over_after_s` "
            f"of {model.name} out."
        )
    if model.deployment == following.deployment:
        raise ValueError(
            f"{model.name} can't spill over to {following.name}, because both run on the replicas "
            f"of the deployment {model.deployment}: give {following.name} a `deployment` of its "
            "own."
        )


def _check_circle(path: list[str], by_name: Mapping[str, ModelConfig]) -> None:
    for name in by_name[path[-1]].fallback:
        if name == path[0]:
            raise ValueError(
                f"The `fallback`s form a circle: {' → '.join([*path, name])}. Leave one of them "
                "out, so that one model is the last."
            )
        if name not in path:
            _check_circle([*path, name], by_name)
