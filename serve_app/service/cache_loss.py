"""Measures what vectors lose in a cache that rounds them."""

import numpy as np
from numpy.typing import NDArray

from serve_app.cache.codec import Codec
from serve_app.engines.base import Engine
from serve_app.engines.parity import parity_texts
from serve_app.models import ModelSpec
from serve_app.types import CacheDtype, CacheLoss, Float32, Tier, Vectors

_BATCH_SIZE = 16
_NEIGHBORS = 5


def measure_cache_loss(
    engine: Engine, spec: ModelSpec, dtype: CacheDtype, codec: Codec
) -> CacheLoss:
    """Embeds the texts of the parity gate and compares their vectors with the decoded ones.

    Args:
        engine: computes the vectors.
        spec: its model.
        dtype: component type of the cache.
        codec: that of the cache.
    """
    inputs = engine.tokenizer.encode(parity_texts(spec.max_tokens))
    batches = [inputs[i : i + _BATCH_SIZE] for i in range(0, len(inputs), _BATCH_SIZE)]
    values = np.concatenate([np.stack([*engine.run("embed", batch)]) for batch in batches])
    n = len(values)
    vectors = Vectors(
        values.astype(np.float32),
        np.zeros(n, dtype=np.int32),
        np.zeros(n, dtype=np.bool_),
        np.full(n, Tier.COMPUTED, dtype=np.uint8),
    )
    exact = _normalized(vectors.values)
    rounded = _normalized(np.stack([*codec.decode(codec.encode(vectors)).values]))
    cosines = np.where(exact.any(axis=1), (exact * rounded).sum(axis=1), 1.0)
    kept = _neighbors(exact)[:, :, np.newaxis] == _neighbors(rounded)[:, np.newaxis, :]
    return CacheLoss(
        dtype, n, float(cosines.min()), float(cosines.mean()), float(kept.any(axis=2).mean())
    )


def _normalized(vectors: Float32) -> NDArray[np.float64]:
    """Returns the vectors with length 1, at a precision that shows small losses."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _neighbors(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the indices of the nearest other vectors of each, shape (n, `_NEIGHBORS`)."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    return np.argsort(-similarities, axis=1, kind="stable")[:, :_NEIGHBORS]
