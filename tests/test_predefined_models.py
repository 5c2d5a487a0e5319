from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest

from serve_app.config import MINILM, AppConfig, ModelConfig
from serve_app.errors import ConfigurationError
from serve_app.models import resolve
from serve_app.sources import (
    HubSource,
    PredefinedModel,
    ProviderSource,
    predefined_model,
    predefined_models,
)


def entry(name: str) -> ModelConfig:
    """Returns the settings of a model of which only the name is given."""
    return ModelConfig.model_validate({"name": name})


MODELS = predefined_models()
PROVIDERS = [
    model
    for model in MODELS.values()
    if isinstance(entry(model.name).parsed_source, ProviderSource)
]
each_provider_model = pytest.mark.parametrize("model", PROVIDERS, ids=lambda model: model.name)


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_the_name_of_a_predefined_model_is_enough(model: PredefinedModel) -> None:
    (config,) = AppConfig.parse({"models": [{"name": model.name}]}).served_models
    assert config.source == model.source
    assert predefined_model(config.source) is model


@each_provider_model
def test_a_model_of_a_provider_has_its_dimensions_limits_and_price(model: PredefinedModel) -> None:
    config = entry(model.name)
    spec, source = resolve(config), config.parsed_source
    assert isinstance(source, ProviderSource)
    assert (spec.dim, spec.max_tokens) == (model.dimension, model.max_tokens)
    assert source.max_texts == model.max_batch_texts
    assert spec.provider == source.kind
    price = 0 if model.price is None else model.price.usd_per_1k_tokens * 10**9
    assert spec.nano_usd_per_1k_tokens == price


@pytest.mark.parametrize(
    ("name", "dimension", "nano_usd"),
    [
        ("text-embedding-3-small", 1536, 20_000),
        ("text-embedding-3-large", 3072, 130_000),
        ("text-embedding-ada-002", 1536, 100_000),
        ("all-MiniLM-L6-v2", 384, 0),
        ("all-mpnet-base-v2", 768, 0),
    ],
)
def test_the_models_of_the_document_backend_are_predefined(
    name: str, dimension: int, nano_usd: int
) -> None:
    assert MODELS[name].dimension == dimension
    assert entry(name).nano_usd_per_1k_tokens == nano_usd


@each_provider_model
def test_a_price_says_when_and_where_it_was_read(model: PredefinedModel) -> None:
    if model.price is not None:
        assert model.price.usd_per_1k_tokens > 0
        assert date(2026, 1, 1) <= model.price.date
        assert model.price.source.startswith("https://")


def test_a_model_of_the_hub_is_pinned_and_the_local_one_is_the_default() -> None:
    source = entry("all-mpnet-base-v2").parsed_source
    assert isinstance(source, HubSource)
    assert source.revision is not None
    spec = resolve(entry("all-MiniLM-L6-v2"))
    model = MODELS["all-MiniLM-L6-v2"]
    assert spec.space_id == resolve(MINILM).space_id
    assert (spec.dim, spec.max_tokens) == (model.dimension, model.max_tokens)
    assert spec.provider is None


SMALL = {"name": "text-embedding-3-small"}


@pytest.mark.parametrize(
    ("fields", "source", "nano_usd"),
    [
        (SMALL | {"usd_per_1k_tokens": "0.00001"}, "openai:text-embedding-3-small", 10_000),
        (SMALL | {"usd_per_1k_tokens": 0}, "openai:text-embedding-3-small", 0),
        (SMALL | {"source": "hashing:64"}, "hashing:64", 0),
        ({"name": "search", "source": "openai:text-embedding-3-small"}, None, 20_000),
        ({"name": "words", "source": "hashing:64", "usd_per_1k_tokens": 1e-9}, "hashing:64", 1),
    ],
    ids=str,
)
def test_everything_is_overridable(
    fields: Mapping[str, Any], source: str | None, nano_usd: int
) -> None:
    (config,) = AppConfig.parse({"models": [fields]}).served_models
    assert config.source == (source or fields["source"])
    assert resolve(config).nano_usd_per_1k_tokens == nano_usd


@pytest.mark.parametrize("name", ["unknown", 5, ["a"], None])
def test_other_models_need_a_source(name: object) -> None:
    with pytest.raises(ConfigurationError, match=r"`source` is missing.*models predefined"):
        AppConfig.parse({"models": [{"name": name}]})
