import numpy as np
import pytest

from benchmarks.compare import cosines, neighbor_overlap

RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((50, 16)).astype(np.float32)


def test_the_length_of_vectors_has_no_effect() -> None:
    assert cosines(VECTORS, 3 * VECTORS) == pytest.approx(np.ones(50), abs=1e-6)
    assert neighbor_overlap(VECTORS, 3 * VECTORS) == 1


def test_a_rotation_changes_every_vector_and_no_neighbor() -> None:
    rotation, _ = np.linalg.qr(RNG.standard_normal((16, 16)))
    rotated = np.asarray(VECTORS @ rotation, dtype=np.float32)
    assert cosines(VECTORS, rotated).mean() < 0.9
    assert neighbor_overlap(VECTORS, rotated) == 1


def test_unrelated_spaces_overlap_by_chance_only() -> None:
    other = RNG.standard_normal((50, 24)).astype(np.float32)
    assert neighbor_overlap(VECTORS, other) == pytest.approx(10 / 49, abs=0.08)


def test_fewer_texts_than_neighbors() -> None:
    assert neighbor_overlap(VECTORS[:3], VECTORS[:3]) == 1
