"""Checks of the chains of models that answer for each other, as far as the settings show."""

from collections.abc import Mapping, Sequence

from serve_app.config.model import ModelConfig


def check_fallbacks(models: Sequence[ModelConfig]) -> None:
    """Checks that chains name other models that are served, each once, and don't form a circle.

    Raises:
        ValueError: one doesn't.
    """
    by_name = {model.name: model for model in models}
    for model in models:
        for name in model.fallback:
            _check_name(model, name, by_name)
        if len({*model.fallback}) < len(model.fallback):
            raise ValueError(f"`fallback` of {model.name} lists a model twice. Keep the first.")
    for model in models:
        _check_circle([model.name], by_name)


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


def _check_circle(path: list[str], by_name: Mapping[str, ModelConfig]) -> None:
    for name in by_name[path[-1]].fallback:
        if name == path[0]:
            raise ValueError(
                f"The `fallback`s form a circle: {' → '.join([*path, name])}. Leave one of them "
                "out, so that one model is the last."
            )
        if name not in path:
            _check_circle([*path, name], by_name)
