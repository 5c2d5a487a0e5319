"""The specs, spaces and settings of models that providers run."""

from typing import Any

import pytest

from serve_app.config import AppConfig, ModelConfig
from serve_app.errors import ConfigurationError, InvalidRequest, ModelSourceError
from serve_app.model_prep.engine_selection import select_engines
from serve_app.models import ModelSpec, model_dir, resolve
from serve_app.sources import SOURCES, ProviderSource

ADDRESS = {"base_url": "https://west.openai.azure.com"}


def spec(source: str, name: str = "m", **settings: Any) -> ModelSpec:
    """Returns the spec of a model; `provider` settings have the prefix `provider_`."""
    provider = {
        key.removeprefix("provider_"): settings.pop(key)
        for key in [*settings]
        if key.startswith("provider_")
    }
    return resolve(
        ModelConfig.model_validate(
            {"name": name, "source": source, "provider": provider} | settings
        )
    )


def azure(name: str, deployment: str, **provider: Any) -> str:
    settings = {f"provider_{key}": value for key, value in (ADDRESS | provider).items()}
    return spec(f"azure:{deployment}", name, **settings).space_id


@pytest.mark.parametrize(
    ("source", "dim", "max_tokens", "unit_length", "default_prompt"),
    [
        ("openai:text-embedding-3-small", 1536, 8192, True, None),
        ("openai:text-embedding-3-large", 3072, 8192, True, None),
        ("openai:text-embedding-ada-002", 1536, 8192, True, None),
        ("cohere:embed-v4.0", 1536, 128_000, False, "document"),
        ("cohere:embed-english-light-v3.0", 384, 512, False, "document"),
        ("voyage:voyage-4-lite", 1024, 32_000, True, None),
        ("voyage:voyage-law-2", 1024, 16_000, True, None),
    ],
)
def test_known_models_need_no_settings(
    source: str, dim: int, max_tokens: int, unit_length: bool, default_prompt: str | None
) -> None:
    actual = spec(source)
    assert (actual.dim, actual.max_tokens) == (dim, max_tokens)
    assert (actual.unit_length, actual.default_prompt) == (unit_length, default_prompt)
    assert actual.tasks == ("embed",)
    assert actual.space_id.endswith("-fp32")


@pytest.mark.parametrize("source", ["openai:text-embedding-3-small", "hashing:1536"])
def test_models_without_files_have_the_dimensions_of_their_entry(source: str) -> None:
    assert spec(source).dimensions == ()
    assert spec(source, dimensions=[512, 256]).dimensions == (256, 512)


@pytest.mark.parametrize(
    ("source", "prompts"),
    [
        ("openai:text-embedding-3-small", ("", "", "")),
        ("cohere:embed-v4.0", ("search_query", "search_document", "search_document")),
        ("voyage:voyage-4", ("query", "document", "")),
    ],
)
def test_input_types_are_those_of_the_provider(source: str, prompts: tuple[str, ...]) -> None:
    actual = spec(source)
    assert tuple(map(actual.prompt, ("query", "document", None))) == prompts


def test_only_cohere_distinguishes_classification() -> None:
    assert spec("cohere:embed-v4.0").prompt("classification") == "classification"
    with pytest.raises(InvalidRequest, match="no input type 'classification'"):
        spec("voyage:voyage-4").prompt("classification")


def test_unknown_models_need_dimensions() -> None:
    with pytest.raises(ModelSourceError, match=r"Set `provider\.dimensions`"):
        spec("openai:text-embedding-9")
    actual = spec("openai:text-embedding-9", provider_dimensions=99, max_tokens=100)
    assert (actual.dim, actual.max_tokens) == (99, 100)
    assert spec("openai:text-embedding-9", provider_dimensions=99).max_tokens == 8192


def test_a_space_is_provider_model_dimensions_and_prompts() -> None:
    first = spec("openai:text-embedding-3-small").space_id
    gateway: dict[str, Any] = {
        "provider_base_url": "https://gateway.example/v1",
        "provider_timeout_s": 3,
    }
    same = {
        spec("openai:text-embedding-3-small", "another name").space_id,
        spec("openai:text-embedding-3-small", provider_dimensions=1536).space_id,
        spec("openai:text-embedding-3-small", max_tokens=100, **gateway).space_id,
    }
    assert same == {first}
    others = {
        spec("openai:text-embedding-ada-002").space_id,
        spec("openai:text-embedding-3-small", provider_dimensions=512).space_id,
        spec("openai:text-embedding-3-small", prompts={"query": "q: "}).space_id,
        azure("text-embedding-3-small", "d"),
        spec(
            "compatible:text-embedding-3-small",
            provider_dimensions=1536,
            provider_base_url="http://localhost/v1",
        ).space_id,
    }
    assert len(others - {first}) == 5


def test_regions_of_an_azure_model_have_one_space() -> None:
    first = azure("text-embedding-3-small", "any")
    assert azure("text-embedding-3-small", "other", base_url="https://east.example") == first
    assert azure("small-east", "text-embedding-3-small") == first
    assert azure("small-east", "east", model="text-embedding-3-small") == first
    assert azure("text-embedding-3-large", "any") != first
    assert azure("small", "any", dimensions=1536) != first
    assert azure("small", "any", dimensions=1536) == azure("x", "any", dimensions=1536)


def test_a_compatible_model_is_named_by_its_entry_or_its_server() -> None:
    def space(source: str, **settings: Any) -> str:
        return spec(
            source, provider_base_url="http://a/v1", provider_dimensions=8, **settings
        ).space_id

    first = space("compatible:default", provider_model="bge-m3")
    assert space("compatible:bge-m3") == first
    assert space("compatible:default") != first


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("azure:d", {"provider": {"dimensions": 8}}, r"Set `provider\.base_url`"),
        ("compatible:m", {"provider": {"dimensions": 8}}, r"Set `provider\.base_url`"),
        ("openai:m", {"provider": {"api_version": "2024-10-21"}}, "Only Azure"),
        ("openai:m", {"provider": {"model": "m"}}, r"leave out `provider\.model`"),
        ("openai:m", {"provider": {"api_key_env": "A", "api_key_file": "b"}}, "exclude each other"),
        ("openai:m", {"revision": "0" * 40}, "`openai` has no files"),
        ("voyage:m", {"sha256": "0" * 64}, "`voyage` has no files"),
        ("cohere:m", {"device": "cuda"}, "leave out `device`"),
        ("cohere:m", {"engine": "torch"}, "leave out `device`"),
        ("cohere:m", {"prompts": {"query": "query: "}}, "takes search_query, search_document"),
        ("voyage:m", {"prompts": {"query": "search_query"}}, "takes query, document"),
        ("hashing:64", {"provider": {"dimensions": 8}}, "No provider runs `hashing:64`"),
        ("path:/m", {"provider": {"api_key_env": "A"}}, "No provider runs `path:/m`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    source: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelConfig.parse({"name": "m", "source": source} | settings, "args.models")


def test_a_provider_is_selected_without_preparation_whatever_the_engines_are() -> None:
    config = AppConfig.model_validate(
        {"engine": "torch", "precision": "bf16", "device": "cuda"}
        | {"model": {"name": "small", "source": "openai:text-embedding-3-small"}}
    )
    (selection,) = select_engines(config)
    assert (selection.engine, selection.precision, selection.device) == (
        *("provider", "fp32", "remote"),
    )
    assert selection.spec.quantization_ranges is None
    assert selection.cached_spec.space_id == spec("openai:text-embedding-3-small").space_id


def test_a_provider_has_no_files() -> None:
    config = ModelConfig(name="small", source="openai:text-embedding-3-small")
    with pytest.raises(ModelSourceError, match="has no files"):
        model_dir(config)


def test_each_provider_is_documented_with_its_source() -> None:
    kinds = {kind: source for kind, source in SOURCES.items() if issubclass(source, ProviderSource)}
    assert {kind: source.kind for kind, source in kinds.items()} == {kind: kind for kind in kinds}
    assert all(f"`{kind}:" in source.description for kind, source in kinds.items())
