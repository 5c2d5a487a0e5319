"""How far two models agree on a sliding sample of texts."""

import numpy as np
import pytest

from serve_app.engines.rank_correlation import rank_correlation
from serve_app.service.vector_pairs import VectorPairs, compare
from serve_app.types import Float32


def vectors(n: int, dim: int = 16, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def keys(n: int) -> list[bytes]:
    return [i.to_bytes(4) for i in range(n)]


def test_a_rotated_space_agrees_in_all_but_the_cosine() -> None:
    first = vectors(60)
    rotation, _ = np.linalg.qr(vectors(16, seed=1))
    found = compare(keys(60), first, first @ rotation, cosine=True)
    assert found is not None
    assert (found.texts, found.kept, found.kept_first) == (60, 1.0, 1.0)
    assert found.rank_correlation == pytest.approx(1.0, abs=1e-3)
    assert found.cosine is not None
    assert abs(found.cosine) < 0.5


def test_unrelated_spaces_of_different_length_agree_by_chance() -> None:
    found = compare(keys(300), vectors(300), vectors(300, 8, seed=1), cosine=False)
    assert found is not None
    assert found.kept < 0.1
    assert found.rank_correlation == pytest.approx(0, abs=0.05)
    assert found.cosine is None


def test_one_model_twice_has_a_cosine_of_one() -> None:
    found = compare(keys(10), vectors(10), vectors(10), cosine=True)
    assert found is not None
    assert found.cosine == pytest.approx(1.0)


def test_two_texts_have_no_neighbours_to_compare() -> None:
    assert compare(keys(2), vectors(2), vectors(2), cosine=False) is None


def test_the_sample_keeps_the_latest_texts() -> None:
    pairs = VectorPairs(3)
    assert pairs.snapshot() is None
    for i, key in enumerate(keys(5)):
        pairs.add(key, np.full(2, i, np.float32), np.full(3, i, np.float32))
    snapshot = pairs.snapshot()
    assert snapshot is not None
    assert list(snapshot[0]) == keys(5)[2:]
    assert (keys(5)[0] in pairs, keys(5)[4] in pairs, len(pairs)) == (False, True, 3)
    np.testing.assert_array_equal(snapshot[1][:, 0], [2, 3, 4])
    assert snapshot[2].shape == (3, 3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 100, 101, 1e6], 1.0),  # ranks only
        ([1, 2, 2, 3], [1, 3, 2, 4], 0.9486833),  # equal values share their rank
        ([1, 1, 1, 1], [1, 2, 3, 4], None),
    ],
)
def test_spearmans_rank_correlation(
    first: list[float], second: list[float], expected: float | None
) -> None:
    found = rank_correlation(np.array(first, np.float32), np.array(second, np.float32))
    assert found == (expected if expected is None else pytest.approx(expected))
