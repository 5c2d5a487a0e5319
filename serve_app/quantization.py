"""Scalar quantization of vectors to one byte per component, with per-dimension ranges."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve_app.types import Float32, UInt8

#: Codes start at 0 (`uint8`) or at -128 (`int8`).
QuantizedType = Literal["int8", "uint8"]


def quantize(vectors: Float32, ranges: Float32, dtype: QuantizedType) -> NDArray[np.int8] | UInt8:
    """Returns the 8-bit codes of vectors, equal to those of `sentence_transformers`.

    Each range is divided into 255 steps; a component outside its range is clipped.

    Args:
        vectors: shape (n, d). Vectors with reduced dimensions must not be normalized again, so that
            their codes are the first d codes of the full vector.
        ranges: shape (2, dim) with dim >= d: the minimum and the maximum of each component.
        dtype: data type of the codes.

    Returns:
        Shape (n, d).
    """
    minimum, maximum = ranges[:, : vectors.shape[1]]
    steps = (maximum - minimum) / 255
    codes: Float32 = np.clip(np.floor((vectors - minimum) / np.where(steps == 0, 1, steps)), 0, 255)
    return codes.astype(np.uint8) if dtype == "uint8" else (codes - 128).astype(np.int8)


def dequantize(codes: NDArray[np.int8] | UInt8, ranges: Float32) -> Float32:
    """Returns the vectors in the middle of the steps of 8-bit codes; their codes are the same.

    The result has the same bits on every machine: no operation depends on the order of additions.

    Args:
        codes: shape (n, dim).
        ranges: shape (2, dim): the minimum and the maximum of each component.

    Returns:
        Shape (n, dim). A component within its range is off by at most half of a step.
    """
    minimum, maximum = ranges
    steps = (maximum - minimum) / np.float32(255)
    first = 0 if codes.dtype == np.uint8 else -128
    vectors: Float32 = minimum + (codes.astype(np.float32) - np.float32(first - 0.5)) * steps
    return vectors
