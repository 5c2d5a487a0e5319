"""The gate of quantized models: which neighbours and similarities their vectors keep.

Vectors at float32 and at int8 of the same texts → `QuantizationLoss`, which is compared with the
bounds of the precision. The smallest cosine alone says little about a search.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embedserve_client.migration.agreement import Sample, agreement
from serve_app.engines.rank_correlation import rank_correlation, similarities
from serve_app.types import Float32, Parity, QuantizationLoss

#: For each precision, the smallest value of each measure.
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "int8": {
        "cosine_min": 0.98,
        "cosine_p1": 0.995,
        "cosine_mean": 0.9985,
        "rank_correlation": 0.998,
        "kept": 0.95,
        "kept_first": 0.94,
        "kept_mixed": 0.96,
    },
    "int8-fast": {
        "cosine_min": 0.96,
        "cosine_p1": 0.985,
        "cosine_mean": 0.996,
        "rank_correlation": 0.995,
        "kept": 0.92,
        "kept_first": 0.9,
        "kept_mixed": 0.94,
    },
}
#: Texts whose pairs are ranked: 80,000 similarities are enough for four digits.
_MAX_RANKED_TEXTS = 400


def measure_loss(texts: Sequence[str], expected: Float32, actual: Float32) -> QuantizationLoss:
    """Compares vectors of a quantized model with those of the same model at float32.

    Args:
        texts: at least three distinct ones.
        expected: their vectors at float32, shape (n, dim).
        actual: those of the quantized model, shape (n, dim).
    """
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(actual, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (expected * actual).sum(axis=1) / lengths
    found = agreement(Sample([*texts], expected, actual), seed=0)
    assert found is not None, "There are three texts."
    ranked = slice(_MAX_RANKED_TEXTS)
    correlation = rank_correlation(similarities(expected[ranked]), similarities(actual[ranked]))
    return QuantizationLoss(
        len(texts),
        float(cosines.min()),
        float(np.quantile(cosines, 0.01)),
        float(cosines.mean()),
        float("nan") if correlation is None else correlation,
        found.kept,
        found.kept_first,
        _kept_mixed(expected, actual, found.neighbours),
    )


def shortfalls(parity: Parity) -> str:
    """Returns the measures that miss a bound of the precision, for people; empty: none does.

    NaN misses every bound.
    """
    loss = parity.quantization_loss
    if loss is None:
        return "it wasn't measured"
    bounds = BOUNDS[parity.precision]
    missed = {name: value for name in bounds if not (value := getattr(loss, name)) >= bounds[name]}
    return ", ".join(f"`{k}` is {v:.4f}, {bounds[k]} is required" for k, v in missed.items())


def _kept_mixed(expected: Float32, actual: Float32, k: int) -> float:
    """Returns the share of neighbours that quantized queries find among vectors at float32."""
    nearest = [_neighbours(queries, expected, k) for queries in (expected, actual)]
    kept = [len(np.intersect1d(*pair)) for pair in zip(*nearest, strict=True)]
    return float(np.mean(kept)) / k


def _neighbours(queries: Float32, documents: Float32, k: int) -> NDArray[np.intp]:
    """Returns the indices of the k nearest documents of each query, without its own text."""
    lengths = np.maximum(np.linalg.norm(documents, axis=1), 1e-12)
    scores = queries @ (documents / lengths[:, np.newaxis]).T
    np.fill_diagonal(scores, -np.inf)
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]
