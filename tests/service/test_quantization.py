"""Bytes of vectors, held against the library that made the format known."""

from typing import Literal

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from serve_app.model_prep.quantization_ranges import ranges_around
from serve_app.service.quantization import quantize
from serve_app.types import Float32
from tests.engines import reference

Kind = Literal["int8", "uint8"]


@pytest.fixture(scope="module")
def vectors() -> Float32:
    return reference.vectors(120)


@pytest.fixture(scope="module")
def ranges(vectors: Float32) -> Float32:
    return ranges_around(vectors)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_codes_of_real_vectors_are_the_librarys(
    vectors: Float32, ranges: Float32, kind: Kind
) -> None:
    codes = quantize(vectors, ranges, kind)
    assert codes.dtype == np.dtype(kind)
    assert np.array_equal(codes, quantize_embeddings(vectors, kind, ranges))
    tight = np.stack([vectors.min(axis=0), vectors.max(axis=0)])  # both ends are met
    assert np.array_equal(quantize(vectors, tight, kind), quantize_embeddings(vectors, kind, tight))


@pytest.mark.parametrize(("kind", "ends"), [("int8", (-128, 127)), ("uint8", (0, 255))])
def test_what_is_outside_of_its_range_gets_the_end_and_never_wraps_around(
    kind: Kind, ends: tuple[int, int]
) -> None:
    ranges = np.array([[-1, -2, 0], [1, 2, 0]], dtype=np.float32)
    values = np.array([[-1.5, 2.5, -9], [1.1, -2, 0], [9, -1e30, 1e30]], dtype=np.float32)
    low, high = ends
    codes = quantize(values, ranges, kind)
    assert codes.tolist() == [[low, high, low], [high, low, low], [high, low, high]]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_codes_of_a_cut_vector_are_the_first_of_the_whole_one(
    vectors: Float32, ranges: Float32, kind: Kind
) -> None:
    whole = quantize(vectors, ranges, kind)
    assert np.array_equal(quantize(vectors[:, :64], ranges, kind), whole[:, :64])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_similarity_survives(vectors: Float32, ranges: Float32, kind: Kind) -> None:
    steps = (ranges[1] - ranges[0]) / 255
    first = 0.0 if kind == "uint8" else -128.0
    codes = quantize(vectors, ranges, kind).astype(np.float32)
    back = ranges[0] + (codes - first + 0.5) * steps
    assert np.abs(back - vectors).max() <= steps.max() * 0.51
    cosine = (back * vectors).sum(axis=1) / np.linalg.norm(back, axis=1)
    assert cosine.min() > 0.999
