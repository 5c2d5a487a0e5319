"""Vectors as bytes: each component as its place among 256 steps of the range it is found in."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.types import Float32, UInt8

#: Steps of a range are counted from 0 (`uint8`), or from -128 (`int8`).
QuantizedType = Literal["int8", "uint8"]


def quantize(vectors: Float32, ranges: Float32, kind: QuantizedType) -> NDArray[np.int8] | UInt8:
    """Codes of the first d components of vectors, the same as `sentence_transformers` gives.

    What lies outside of its range gets the first or the last code.

    Args:
        vectors: shape (n, d); the model's own, not brought to unit length again after a cut, so
            that codes of a cut vector are the first of the whole one.
        ranges: shape (2, dim), dim at least d: of each component the least and the greatest value.
        kind: what to give.

    Returns:
        Shape (n, d).
    """
    least, greatest = ranges[:, : vectors.shape[1]]
    steps = (greatest - least) / 255
    codes: Float32 = np.clip(np.floor((vectors - least) / np.where(steps == 0, 1, steps)), 0, 255)
    return codes.astype(np.uint8) if kind == "uint8" else (codes - 128).astype(np.int8)
