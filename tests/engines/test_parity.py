"""The parity gate, with an engine that returns what the test says."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from serve_app.engines.base import ModelInput, Rows
from serve_app.engines.parity import (
    MAX_SCORE_ERROR,
    MIN_COSINE,
    describe_shortfall,
    has_parity,
    measure_parity,
    parity_inputs,
)
from serve_app.inputs import Image, QueryText, TextPair
from serve_app.tasks import ModelKind, Task
from serve_app.types import SPARSE_DTYPE, Parity, Row
from tests.fakes import SPEC, FakeEngine


class FixedEngine(FakeEngine):
    """Returns for each input the row of its text."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        super().__init__()
        self._rows = rows

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        return [self._rows["".join(map(chr, tokens.ids))] for tokens in batch]  # type: ignore[union-attr]


def measure(task: Task, actual: Mapping[str, Row], expected: Mapping[str, Row]) -> Parity:
    rows = {task: [*expected.values()]}
    return measure_parity(FixedEngine(actual), {task: [*expected]}, rows, "fp32")


def row(*values: float) -> Row:
    return np.array(values, dtype=np.float32)


def sparse(**weights: float) -> Row:
    pairs = [(int(name[1:]), weight) for name, weight in weights.items()]
    return np.array(pairs, dtype=SPARSE_DTYPE)


def test_vectors_are_compared_by_their_smallest_cosine() -> None:
    expected = {"a": row(1, 0), "b": row(0, 2)}
    parity = measure("embed", expected | {"b": row(3, 4)}, expected)
    assert (parity.texts, parity.score_error_max) == (2, None)
    assert parity.cosine_min == pytest.approx(0.8)
    assert not has_parity(parity)
    assert "cosine 0.800000" in describe_shortfall(parity)


def test_token_vectors_are_compared_one_by_one() -> None:
    expected = {"a": np.array([[1, 0], [0, 1]], dtype=np.float32)}
    other = {"a": np.array([[2, 0], [3, 4]], dtype=np.float32)}
    assert measure("embed_tokens", other, expected).cosine_min == pytest.approx(0.8)
    fewer = measure("embed_tokens", {"a": other["a"][:1]}, expected)
    assert not has_parity(fewer)


def test_sparse_vectors_are_compared_by_their_cosine() -> None:
    expected = {"a": sparse(i3=3, i7=4), "": sparse()}
    assert measure("embed_sparse", expected, expected).cosine_min == pytest.approx(1)
    other = measure("embed_sparse", expected | {"a": sparse(i3=5)}, expected)
    assert other.cosine_min == pytest.approx(0.6)
    disjoint = measure("embed_sparse", expected | {"a": sparse(i4=5)}, expected)
    assert disjoint.cosine_min == 0
    assert not has_parity(measure("embed_sparse", expected | {"a": sparse()}, expected))


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [(0.5, 0.25, 0.25), (-0.5, -0.5, 0), (22, 20, 0.1), (-22, -20, 0.1)],
)
def test_scores_are_compared_by_their_largest_error(
    actual: float, expected: float, error: float
) -> None:
    parity = measure("classify", {"a": row(1, actual)}, {"a": row(1, expected)})
    assert parity.cosine_min is None
    assert parity.score_error_max == pytest.approx(error)
    assert has_parity(parity) == (error <= 1e-4)
    if error:
        assert f"up to {error:.6f} away" in describe_shortfall(parity)


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_a_value_that_is_not_finite_never_passes(task: Task) -> None:
    expected = {"a": row(1, 2), "b": row(2, 1)}
    for value in (np.nan, np.inf):
        for name in expected:
            assert not has_parity(measure(task, expected | {name: row(1, value)}, expected))


def test_each_precision_has_its_bounds() -> None:
    for precision in ("fp32", "bf16", "fp16"):
        assert has_parity(Parity(precision, 1, MIN_COSINE[precision]))
        assert not has_parity(Parity(precision, 1, MIN_COSINE[precision] - 1e-5))
        assert has_parity(Parity(precision, 1, None, MAX_SCORE_ERROR[precision]))
        assert not has_parity(Parity(precision, 1, None, 1.1 * MAX_SCORE_ERROR[precision]))
    assert not has_parity(Parity("fp32", 1))


@pytest.mark.parametrize(
    ("kind", "tasks", "expected"),
    [
        ("dense", ("embed", "embed_tokens"), {"embed": {str}}),
        ("dense", ("embed", "embed_images"), {"embed": {str}, "embed_images": {Image}}),
        ("cross-encoder", ("rerank", "classify"), {"classify": {str, TextPair}}),
        ("sparse", ("embed_sparse",), {"embed_sparse": {str}}),
        ("multi-vector", ("embed_tokens", "rerank"), {"embed_tokens": {str, QueryText}}),
    ],
)
def test_each_kind_is_measured_with_its_inputs(
    kind: ModelKind, tasks: tuple[Task, ...], expected: dict[Task, set[type]]
) -> None:
    inputs = parity_inputs(replace(SPEC, kind=kind, tasks=tasks))
    assert {task: {*map(type, values)} for task, values in inputs.items()} == expected
    assert inputs == parity_inputs(replace(SPEC, kind=kind, tasks=tasks))
