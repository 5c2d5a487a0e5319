"""Aliases in the configuration: what is refused, and how to mend it."""

from dataclasses import replace
from typing import Any

import pytest

from serve_app.config import AliasConfig, AppConfig
from serve_app.errors import ConfigurationError
from serve_app.model_prep.alias_check import check_alias_models
from serve_app.model_prep.engine_selection import select_engines
from tests.fakes import SPEC

MODELS: list[dict[str, Any]] = [
    {"name": "first", "source": "hashing:64", "aliases": ["other-name"]},
    {"name": "second", "source": "hashing:32"},
]
SECOND = replace(SPEC, name="second", space_id="beef-fp32", dim=4)
RERANKER = replace(SPEC, name="reranker", kind="cross-encoder", tasks=("rerank",))
SPECS = {"first": replace(SPEC, name="first"), "second": SECOND, "reranker": RERANKER}


def parse(*aliases: dict[str, Any], models: list[dict[str, Any]] | None = None) -> AppConfig:
    return AppConfig.parse({"models": models or MODELS, "aliases": aliases})


def alias(**settings: Any) -> dict[str, Any]:
    return {"name": "words", "model": "first", **settings}


def test_an_alias_with_both_is_accepted() -> None:
    canary, shadow = {"model": "second", "share": 0.1}, {"model": "second", "share": 0.5}
    (settings,) = parse(alias(canary=canary, shadow=shadow, is_default=True)).aliases
    assert (settings.canary.share, settings.shadow.share) == (0.1, 0.5)
    assert parse(alias()).aliases[0].canary.model is None


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ([alias(model="third")], "'third', which is no model: served are first, second"),
        ([alias(model="other-name")], "its name is 'first'"),
        ([alias(canary={"model": "third", "share": 0.1})], "`canary.model` of the alias 'words'"),
        ([alias(shadow={"model": "third"})], "`shadow.model` of the alias 'words'"),
        ([alias(canary={"model": "first", "share": 0.1})], "is its `model`, first"),
        ([alias(shadow={"model": "first"})], "is its `model`, first"),
        ([alias(canary={"model": "second", "share": 1.1})], "aliases.0.canary.share: Input should"),
        (
            [alias(shadow={"model": "second", "share": -0.1})],
            "aliases.0.shadow.share: Input should",
        ),
        ([alias(canary={"model": "second"})], "Set either `share`"),
        ([alias(canary={"model": "second", "share": 0, "keys": ["a"]})], "Set either `share`"),
        ([alias(canary={"share": 0.1})], "`model` is missing"),
        ([alias(shadow={"cosine": True})], "`model` is missing"),
        ([alias(name="second")], "'second' is already a name of second"),
        ([alias(name="other-name")], "'other-name' is already a name of first"),
        ([alias(), alias()], "'words' is already a name of the alias 'words'"),
        (
            [alias(is_default=True), alias(name="more", is_default=True)],
            "the alias 'words' and the alias 'more' are both the default",
        ),
    ],
)
def test_an_invalid_alias_is_refused(aliases: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse(*aliases)
    assert message in str(error.value)


def test_a_model_and_an_alias_are_not_both_the_default() -> None:
    models = [{**MODELS[0], "default_for": ["embed"]}, MODELS[1]]
    with pytest.raises(ConfigurationError, match="both the default for embeddings"):
        parse(alias(is_default=True), models=models)
    assert parse(alias(), models=models).aliases


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (alias(canary={"model": "reranker", "share": 0.1}), "is cross-encoder, and first is dense"),
        (alias(shadow={"model": "reranker"}), "only dense models can be a `shadow`"),
        (alias(model="reranker", shadow={"model": "first"}), "only dense models have a `shadow`"),
        (alias(shadow={"model": "second", "cosine": True}), "have 8 dimensions, and those of"),
        (alias(model="reranker", is_default=True), "`is_default` is for embeddings"),
    ],
)
def test_models_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        check_alias_models([AliasConfig.model_validate(settings)], SPECS)
    assert message in str(error.value)


def test_models_that_are_not_known_yet_are_not_checked() -> None:
    check_alias_models([AliasConfig.model_validate(alias(shadow={"model": "second"}))], {})


def test_a_configuration_is_checked_before_it_is_deployed() -> None:
    shadow = {"model": "second", "cosine": True}
    with pytest.raises(ConfigurationError, match="Leave out `shadow"):
        select_engines(parse(alias(shadow=shadow)))
