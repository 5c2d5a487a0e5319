"""The spaces of quantized models."""

from dataclasses import replace
from typing import Any

import pytest

from embedserve_client.space import Space
from serve_app.config import MINILM
from serve_app.engines.cpu_features import INT8_PRECISIONS
from serve_app.model_prep import int8_recipe
from serve_app.model_prep.int8_recipe import (
    RECIPES,
    prepared_space,
    recipe_space,
    space_precision,
)
from serve_app.models import resolve


def space(precision: str, scales: bytes = b"[[-1, 1]]") -> Space:
    recipe = resolve(MINILM, space_precision(precision)).space_id
    return Space.parse(prepared_space(recipe, scales))


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
def test_int8_vectors_compare_with_those_of_the_same_recipe_and_scales_only(precision: str) -> None:
    assert space(precision).is_comparable_to(space(precision))
    assert not space(precision).is_comparable_to(space(precision, b"[[-1, 1.03125]]"))
    others = {*INT8_PRECISIONS, "fp32", "bf16", "fp16"} - {precision}
    for other in others:
        assert not space(precision).is_comparable_to(space(other))
    assert space(precision).family == space("fp32").family


@pytest.mark.parametrize(
    "change", [{"float_contraction": 3.0}, {"texts": 200}, {"smoothing": 0.7}, {"version": 9}]
)
def test_another_recipe_is_another_space(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = space("int8")
    changed = {**RECIPES, "int8": replace(RECIPES["int8"], **change)}
    monkeypatch.setattr(int8_recipe, "RECIPES", changed)
    assert not space("int8").is_comparable_to(before)


@pytest.mark.parametrize("precision", [*INT8_PRECISIONS, "fp32"])
def test_a_node_knows_the_recipes_space_of_a_prepared_model(precision: str) -> None:
    recipe = resolve(MINILM, space_precision(precision)).space_id
    prepared = prepared_space(recipe, b"[]") if precision in RECIPES else recipe
    assert recipe_space(prepared, precision) == recipe
