"""Checks that the models behind an alias can stand in for each other, and be compared."""

from collections.abc import Iterator, Mapping, Sequence

from serve_app.config import AliasConfig
from serve_app.errors import ConfigurationError
from serve_app.models import ModelSpec


def check_alias_models(aliases: Sequence[AliasConfig], specs: Mapping[str, ModelSpec]) -> None:
    """Checks the models of the aliases, as far as they are known.

    Args:
        aliases: all aliases.
        specs: the known models, by name.

    Raises:
        ConfigurationError: a canary is of another kind, a model with a shadow isn't dense, a
            cosine is to be computed of vectors of different length, or the default for embeddings
            doesn't embed.
    """
    for alias in aliases:
        for problem in _problems(alias, specs):
            raise ConfigurationError(f"The alias {alias.name!r}: {problem}")


def _problems(alias: AliasConfig, specs: Mapping[str, ModelSpec]) -> Iterator[str]:
    spec = specs.get(alias.model)
    canary, shadow = (specs.get(s.model or "") for s in (alias.canary, alias.shadow))
    if spec is None:
        return
    if alias.is_default and "embed" not in spec.tasks:
        yield (
            f"`is_default` is for embeddings, and {spec.name} supports {', '.join(spec.tasks)}. "
            "Leave it out."
        )
    if canary is not None and canary.kind != spec.kind:
        yield (
            f"`canary.model` is {canary.kind}, and {spec.name} is {spec.kind}, so that it couldn't "
            "answer the same requests. Name another model of that kind."
        )
    if alias.shadow.model is not None and spec.kind != "dense":
        yield f"only dense models have a `shadow`, and {spec.name} is {spec.kind}. Leave it out."
    if shadow is None:
        return
    if shadow.kind != "dense":
        yield f"only dense models can be a `shadow`, and {shadow.name} is {shadow.kind}."
    if alias.shadow.cosine and shadow.dim != spec.dim:
        yield (
            f"vectors of {spec.name} have {spec.dim} dimensions, and those of {shadow.name} "
            f"{shadow.dim}, so that they have no cosine. Leave out `shadow.cosine`."
        )
