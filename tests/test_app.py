import logging
from dataclasses import replace
from typing import Any

import pytest
from ray.serve import Application

from serve_app import app
from serve_app.config import AppConfig, CacheConfig, ModelConfig
from serve_app.model_prep.engine_selection import select_engine

HASHING = ModelConfig(name="words", source="hashing:64")


def bound(application: Application) -> Any:
    """Returns the deployment with its constructor arguments, which Ray has no public API for."""
    return application._bound_deployment


def test_replicas_get_the_selected_engine_and_the_log_lists_rejected_engines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig(model=HASHING)
    selection = replace(select_engine(config), rejected=("x at bf16: no",))
    monkeypatch.setattr(app, "select_engine", lambda config: selection)
    with caplog.at_level(logging.INFO):
        ingress = bound(app.build(config))
    assert caplog.messages == [
        "Rejected engine: x at bf16: no",
        "Selected engine: hashing at fp32.",
    ]
    spec, lookup, ingress_config, embedder = ingress.init_args
    assert (spec, ingress_config) == (selection.spec, config)
    lookup_spec, lookup_embedder, cache_config = bound(lookup).init_args
    assert (lookup_spec, cache_config) == (selection.spec, config.cache)
    assert lookup_embedder is embedder
    (embedder_selection,) = bound(embedder).init_args
    assert embedder_selection == selection
    assert (selection.config.engine, selection.config.precision) == ("hashing", "fp32")


def test_with_colocated_topology_there_is_one_deployment() -> None:
    config = AppConfig(model=HASHING, topology="colocated", cache=CacheConfig(dtype="float16"))
    server = bound(app.build(config))
    assert server.name == "EmbedServer"
    (selection,) = server.init_args
    assert selection.config == config.model_copy(update={"engine": "hashing", "precision": "fp32"})
    assert selection.cached_spec.space_id == f"{selection.spec.space_id}+float16"


def test_vectors_that_the_cache_rounds_belong_to_another_space() -> None:
    config = AppConfig(model=HASHING, cache=CacheConfig(dtype="float16"))
    spec, lookup, _, _ = bound(app.build(config)).init_args
    lookup_spec, embedder, _ = bound(lookup).init_args
    (selection,) = bound(embedder).init_args
    assert spec == lookup_spec
    assert spec.space_id == f"{selection.spec.space_id}+float16"
