"""Predefined models: `predefined_models.yaml` → `PredefinedModel`, by name and by source."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml


class Price(NamedTuple):
    """A list price."""

    usd_per_1k_tokens: Decimal
    date: date  #: when it was read
    source: str  #: URL of the page


@dataclass(frozen=True, slots=True)
class PredefinedModel:
    """A model that the service has data of."""

    name: str
    source: str  #: as the setting `source` is written
    dimension: int  #: of its vectors, unless the configuration asks for another
    max_tokens: int  #: of one text
    revision: str | None = None  #: of a `hub:` model
    sha256: str | None = None  #: of the weights
    max_batch_texts: int | None = None  #: of one call to a provider
    max_batch_tokens: int | None = None
    price: Price | None = None  #: None: free

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the model's entry that define its weights."""
        settings = {"source": self.source, "revision": self.revision, "sha256": self.sha256}
        return {name: value for name, value in settings.items() if value is not None}


@cache
def predefined_models() -> Mapping[str, PredefinedModel]:
    """Returns the predefined models by name, in the order of the file."""
    text = files(__package__).joinpath("predefined_models.yaml").read_text(encoding="utf-8")
    models = {}
    for name, fields in yaml.safe_load(text).items():
        price = fields.pop("price", None)
        if price is not None:
            usd = Decimal(price["usd_per_1k_tokens"])
            price = Price(usd, price["date"], price["source"])
        models[name] = PredefinedModel(name, price=price, **fields)
    return models


@cache
def predefined_model(source: str) -> PredefinedModel | None:
    """Returns the predefined model with this source; None: the service has no data of it."""
    return next((model for model in predefined_models().values() if model.source == source), None)
