"""Settings of aliases: names that stand for one model, and for a second one while it is tried."""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, model_validator

from serve_app.config.model import ModelConfig
from serve_app.config.section import Section


class CanarySettings(Section):
    """Which clients of an alias get answers of a second model."""

    model: str | None = Field(
        default=None,
        description="Name of a second model, of the same kind, that answers some of the clients. "
        "Clients that send its space in `x-embedding-space` get it as well, and those that send "
        "the first model's space never do. null: none.",
    )
    share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the clients, from 0 to 1. A hash of the API key's name, or without "
        "keys of the client's address, decides: a client gets one model for all of its texts. "
        "With 0, only clients get it that send its space.",
    )
    keys: tuple[str, ...] = Field(
        default=(), description="In place of `share`: the names of the API keys that get it."
    )

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if self.model is None:
            if self.model_fields_set - {"model"}:
                raise ValueError("`model` is missing: the name of the second model.")
        elif (self.share is None) is not bool(self.keys):
            raise ValueError(
                "Set either `share`, a share of the clients, or `keys`, the names of API keys."
            )
        return self


class ShadowSettings(Section):
    """Which texts of an alias a second model embeds too, for a comparison."""

    model: str | None = Field(
        default=None,
        description="Name of a second model that embeds a share of the texts too, in the lane "
        "`bulk` and after the answer. Its vectors are compared and never answered; no API key is "
        "charged. Both models must be dense. null: none.",
    )
    share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of the distinct texts, from 0 to 1. A hash of the text decides.",
    )
    sample_texts: int = Field(
        default=500,
        ge=20,
        le=2000,
        description="How many of the latest texts each replica compares. Only their vectors are in "
        "memory, those of both models.",
    )
    timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="How long the second model may take for a group of texts, which is then "
        "dropped and counted.",
    )
    cosine: bool = Field(
        default=False,
        description="Also report the cosine of the two vectors of each text. Enable it only for "
        "two variants of one model, such as two precisions, that have the same number of "
        "dimensions. Between two models trained apart it says nothing.",
    )

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.model is None and self.model_fields_set - {"model"}:
            raise ValueError("`model` is missing: the name of the second model.")
        return self


class AliasConfig(Section):
    """A name that clients request, and the models behind it."""

    name: str = Field(
        min_length=1,
        description="Name in requests. It must differ from all names and aliases of models.",
    )
    model: str = Field(min_length=1, description="Name of the model that answers.")
    is_default: bool = Field(
        default=False,
        description="Whether requests for embeddings that name no model are requests for this "
        "alias.",
    )
    canary: CanarySettings = Field(
        default=CanarySettings(), description="A second model that answers some of the clients."
    )
    shadow: ShadowSettings = Field(
        default=ShadowSettings(), description="A second model that is compared with the first."
    )


def check_aliases(aliases: Sequence[AliasConfig], models: Sequence[ModelConfig]) -> None:
    """Checks that names are distinct and that aliases name models that are served.

    Raises:
        ValueError: they don't.
    """
    by_name = {model.name: model for model in models}
    taken = {name: model.name for model in models for name in (model.name, *model.aliases)}
    for alias in aliases:
        if alias.name in taken:
            raise ValueError(
                f"The alias {alias.name!r} is already a name of {taken[alias.name]}. Choose "
                "another one, or remove it there."
            )
        where = taken[alias.name] = f"the alias {alias.name!r}"
        _check_model(f"`model` of {where}", alias.model, by_name)
        for setting, second in (("canary", alias.canary.model), ("shadow", alias.shadow.model)):
            if second is None:
                continue
            _check_model(f"`{setting}.model` of {where}", second, by_name)
            if second == alias.model:
                raise ValueError(
                    f"`{setting}.model` of {where} is its `model`, {second}. Name another model, "
                    f"or leave out `{setting}`."
                )
    _check_default(aliases, models)


def _check_default(aliases: Sequence[AliasConfig], models: Sequence[ModelConfig]) -> None:
    defaults = [f"the alias {alias.name!r}" for alias in aliases if alias.is_default]
    defaults += [model.name for model in models if "embed" in model.default_for]
    if len(defaults) > 1 and any(alias.is_default for alias in aliases):
        raise ValueError(
            f"{' and '.join(defaults)} are both the default for embeddings. Leave `is_default`, or "
            "`embed` in `default_for`, in one of them."
        )


def _check_model(setting: str, name: str, by_name: Mapping[str, ModelConfig]) -> None:
    if name not in by_name:
        other = next((model.name for model in by_name.values() if name in model.aliases), None)
        known = f"its name is {other!r}" if other else f"served are {', '.join(by_name)}"
        raise ValueError(f"{setting} is {name!r}, which is no model: {known}.")
