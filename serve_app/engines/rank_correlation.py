"""Spearman's rank correlation."""

import numpy as np
from numpy.typing import NDArray

from serve_app.types import Float32


def rank_correlation(first: Float32, second: Float32) -> float | None:
    """Returns Spearman's rank correlation of two arrays; None: all values of one are equal."""
    first_ranks, second_ranks = _ranks(first), _ranks(second)
    if np.ptp(first_ranks) == 0 or np.ptp(second_ranks) == 0:
        return None
    return float(np.corrcoef(first_ranks, second_ranks)[0, 1])


def similarities(vectors: Float32) -> Float32:
    """Returns the cosines of all pairs of rows of an array of shape (n, dim)."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray((unit @ unit.T)[np.triu_indices(len(unit), 1)])


def _ranks(values: Float32) -> NDArray[np.float64]:
    """Returns the rank of each value; equal values share the mean of theirs."""
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(mean_ranks[positions], dtype=np.float64)
