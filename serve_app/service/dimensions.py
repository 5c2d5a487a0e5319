"""Fewer dimensions, and unit length."""

import numpy as np

from serve_app.types import Float32


def truncate_dimensions(vectors: Float32, dimensions: int | None) -> Float32:
    """Returns the first `dimensions` components of each vector, normalized again.

    Models with Matryoshka training (Kusupati et al., 2022, "Matryoshka Representation Learning")
    support this; vectors of other models lose quality.

    Args:
        vectors: shape (n, dim).
        dimensions: at most dim. None: return the vectors unchanged.

    Returns:
        Shape (n, dimensions), float32.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    return normalize(vectors[:, :dimensions])


def normalize(vectors: Float32) -> Float32:
    """Returns vectors of shape (n, dim) divided by their L2 norms. A zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0, 1, norms), dtype=np.float32)
