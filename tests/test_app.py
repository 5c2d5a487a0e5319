import logging
from dataclasses import replace
from typing import Any

import pytest

from serve_app import app
from serve_app.config import AppConfig, CacheConfig, ModelConfig
from serve_app.model_prep.engine_selection import select_engine


def test_replicas_get_what_was_chosen_and_the_log_tells_what_was_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = AppConfig(model=ModelConfig(name="words", source="hashing:64"))
    choice = replace(select_engine(asked), refused=("x at bf16: no",))
    monkeypatch.setattr(app, "select_engine", lambda config: choice)
    with caplog.at_level(logging.INFO):
        ingress: Any = app.build(asked)._bound_deployment
    assert caplog.messages == ["Refused: x at bf16: no", "Chosen: hashing at fp32."]
    spec, lookup, config, direct = ingress.init_args
    assert config == asked
    seen, embedder, cache = lookup._bound_deployment.init_args
    assert (seen, cache) == (choice.spec, asked.cache)
    assert direct is embedder
    (given,) = embedder._bound_deployment.init_args
    assert (given, spec) == (choice, choice.spec)
    assert (given.config.engine, given.config.precision) == ("hashing", "fp32")


def test_inline_the_ingress_asks_the_embedder_itself() -> None:
    model = ModelConfig(name="words", source="hashing:64")
    ingress: Any = app.build(AppConfig(model=model, topology="inline"))._bound_deployment
    _, embedder, _, direct = ingress.init_args
    assert direct is embedder
    assert embedder._bound_deployment.name == "Embedder"


def test_vectors_that_are_kept_rounded_are_of_another_space() -> None:
    asked = AppConfig(
        model=ModelConfig(name="words", source="hashing:64"),
        cache=CacheConfig(dtype="float16"),
    )
    ingress: Any = app.build(asked)._bound_deployment
    spec, lookup, _, _ = ingress.init_args
    seen, embedder, _ = lookup._bound_deployment.init_args
    (choice,) = embedder._bound_deployment.init_args
    assert spec == seen
    assert spec.space_id == f"{choice.spec.space_id}+float16"
