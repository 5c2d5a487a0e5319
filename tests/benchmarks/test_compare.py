import numpy as np
import pytest

from benchmarks.compare import cosines, neighbours_agreed

RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((50, 16)).astype(np.float32)


def test_length_does_not_matter() -> None:
    assert cosines(VECTORS, 3 * VECTORS) == pytest.approx(np.ones(50), abs=1e-6)
    assert neighbours_agreed(VECTORS, 3 * VECTORS) == 1


def test_a_rotation_changes_every_vector_and_no_neighbour() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((16, 16)))
    rotated = np.asarray(VECTORS @ rotation, dtype=np.float32)
    assert cosines(VECTORS, rotated).mean() < 0.9
    assert neighbours_agreed(VECTORS, rotated) == 1


def test_unrelated_spaces_agree_by_chance_only() -> None:
    other = RNG.standard_normal((50, 24)).astype(np.float32)
    assert neighbours_agreed(VECTORS, other) == pytest.approx(10 / 49, abs=0.08)


def test_few_texts_are_enough() -> None:
    assert neighbours_agreed(VECTORS[:3], VECTORS[:3]) == 1
