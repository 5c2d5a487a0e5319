"""The types that vectors are written in, against plain references."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.service.embed import truncate_dimensions
from serve_app.types import EmbedResult, Float32
from serve_app.web.schema.vector_encoding import OUTPUT_TYPES, Encoder
from tests.fakes import DIM, SPEC

RANGES = np.stack([np.linspace(-1, -0.2, DIM), np.linspace(0.3, 1.5, DIM)]).astype(np.float32)
RANGED = replace(SPEC, quantization_ranges=RANGES)
floats = st.floats(-2, 2, width=32)
vectors_of = st.lists(st.lists(floats, min_size=DIM, max_size=DIM), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, dtype=np.float32)
)


def result(vectors: Float32, raw: Float32 | None = None) -> EmbedResult:
    n = len(vectors)
    whole = np.zeros(n, dtype=np.bool_)
    none = np.zeros(n, dtype=np.uint8)
    return EmbedResult("m", vectors, np.ones(n, dtype=np.int32), whole, none, raw=raw)


def rows(written: Sequence[Any]) -> list[list[int]]:
    return [row.tolist() for row in written]


@given(vectors_of)
def test_bits_are_one_where_a_component_is_above_zero(vectors: Float32) -> None:
    wanted = [
        [int("".join("1" if x > 0 else "0" for x in row[i : i + 8]), 2) for i in range(0, DIM, 8)]
        for row in vectors.tolist()
    ]
    assert rows(Encoder(SPEC, "ubinary")(result(vectors))) == wanted
    signed = [[byte - 128 for byte in row] for row in wanted]
    assert rows(Encoder(SPEC, "binary")(result(vectors))) == signed


def test_bits_that_fill_no_byte_are_filled_with_zeros() -> None:
    vectors = np.array([[1.0, -1.0, 1.0]], dtype=np.float32)
    assert rows(Encoder(SPEC, "ubinary")(result(vectors))) == [[0b10100000]]


@given(vectors_of)
def test_bytes_are_places_in_a_components_range(vectors: Float32) -> None:
    unsigned = np.array(rows(Encoder(RANGED, "uint8")(result(vectors))))
    signed = np.array(rows(Encoder(RANGED, "int8")(result(vectors))))
    assert ((unsigned >= 0) & (unsigned <= 255)).all()
    assert np.array_equal(signed, unsigned - 128)
    low, high = RANGES.astype("f8")
    inside = (vectors > low) & (vectors < high)
    back = low + (unsigned + 0.5) * (high - low) / 255
    assert (np.abs(back - vectors)[inside] <= (((high - low) / 255) * 0.51 + 1e-6).max()).all()
    assert (unsigned[vectors <= low] == 0).all()
    assert (unsigned[vectors >= high] == 255).all()


@given(vectors_of, st.integers(1, DIM), st.sampled_from(["int8", "uint8"]))
def test_codes_of_a_cut_vector_are_the_first_of_the_whole_one(
    vectors: Float32, dimensions: int, kind: str
) -> None:
    encoder = Encoder(RANGED, kind)
    cut = truncate_dimensions(vectors, dimensions)
    codes = rows(encoder(result(cut, raw=vectors)))
    assert codes == [row[:dimensions] for row in rows(encoder(result(vectors)))]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_bytes_need_ranges(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=kind):
        Encoder(SPEC, kind)


DTYPES = {"float": "<f4", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


@pytest.mark.parametrize("kind", OUTPUT_TYPES)
def test_base64_is_the_same_numbers(kind: str) -> None:
    given = result(np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32))
    as_list = rows(Encoder(RANGED, kind)(given))
    as_text = Encoder(RANGED, kind, as_base64=True)(given)
    assert [np.frombuffer(base64.b64decode(text), DTYPES[kind]).tolist() for text in as_text] == (
        as_list
    )
