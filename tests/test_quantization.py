"""Quantized vectors equal those of `sentence_transformers`."""

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from serve_app.model_prep.quantization_ranges import compute_ranges
from serve_app.quantization import QuantizedType, dequantize, quantize
from serve_app.types import Float32
from tests.engines import reference


@pytest.fixture(scope="module")
def vectors() -> Float32:
    return reference.reference_vectors(120)


@pytest.fixture(scope="module")
def ranges(vectors: Float32) -> Float32:
    return compute_ranges(vectors)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_codes_of_real_vectors_equal_the_librarys(
    vectors: Float32, ranges: Float32, dtype: QuantizedType
) -> None:
    codes = quantize(vectors, ranges, dtype)
    assert codes.dtype == np.dtype(dtype)
    assert np.array_equal(codes, quantize_embeddings(vectors, dtype, ranges))
    # Each of these ranges has a component at both of its ends.
    tight = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    codes = quantize(vectors, tight, dtype)
    assert np.array_equal(codes, quantize_embeddings(vectors, dtype, tight))


@pytest.mark.parametrize(("dtype", "ends"), [("int8", (-128, 127)), ("uint8", (0, 255))])
def test_a_component_outside_its_range_is_clipped(
    dtype: QuantizedType, ends: tuple[int, int]
) -> None:
    ranges = np.array([[-1, -2, 0], [1, 2, 0]], dtype=np.float32)
    values = np.array([[-1.5, 2.5, -9], [1.1, -2, 0], [9, -1e30, 1e30]], dtype=np.float32)
    low, high = ends
    codes = quantize(values, ranges, dtype)
    assert codes.tolist() == [[low, high, low], [high, low, low], [high, low, high]]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_codes_of_reduced_dimensions_are_the_first_of_the_full_vector(
    vectors: Float32, ranges: Float32, dtype: QuantizedType
) -> None:
    full = quantize(vectors, ranges, dtype)
    assert np.array_equal(quantize(vectors[:, :64], ranges, dtype), full[:, :64])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dequantized_vectors_are_similar(
    vectors: Float32, ranges: Float32, dtype: QuantizedType
) -> None:
    steps = (ranges[1] - ranges[0]) / 255
    codes = quantize(vectors, ranges, dtype)
    dequantized = dequantize(codes, ranges)
    assert dequantized.dtype == np.float32
    assert np.array_equal(quantize(dequantized, ranges, dtype), codes)
    assert np.abs(dequantized - vectors).max() <= steps.max() * 0.51
    cosine = (dequantized * vectors).sum(axis=1) / np.linalg.norm(dequantized, axis=1)
    assert cosine.min() > 0.999
