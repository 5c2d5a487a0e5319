"""Output types of vectors, against plain references."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidRequest
from serve_app.results import EmbedResult
from serve_app.service.dimensions import truncate_dimensions
from serve_app.types import Float32
from serve_app.web.schema.vector_encoding import (
    OUTPUT_TYPES,
    VectorEncoder,
    float_rows,
    serialize_rows,
)
from tests.fakes import DIM, SPEC

RANGES = np.stack([np.linspace(-1, -0.2, DIM), np.linspace(0.3, 1.5, DIM)]).astype(np.float32)
CALIBRATED = replace(SPEC, quantization_ranges=RANGES)
floats = st.floats(-2, 2, width=32)
arrays = st.lists(st.lists(floats, min_size=DIM, max_size=DIM), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, dtype=np.float32)
)


def embed_result(vectors: Float32, raw: Float32 | None = None) -> EmbedResult:
    n = len(vectors)
    return EmbedResult(
        "m",
        vectors,
        token_counts=np.ones(n, dtype=np.int32),
        truncated=np.zeros(n, dtype=np.bool_),
        tiers=np.zeros(n, dtype=np.uint8),
        raw=raw,
    )


def as_lists(rows: Sequence[Any]) -> list[list[int]]:
    return [row.tolist() for row in rows]


@given(arrays)
def test_a_bit_is_one_where_the_value_is_above_zero(vectors: Float32) -> None:
    expected = [
        [int("".join("1" if x > 0 else "0" for x in row[i : i + 8]), 2) for i in range(0, DIM, 8)]
        for row in vectors.tolist()
    ]
    assert as_lists(VectorEncoder(SPEC, "ubinary")(embed_result(vectors))) == expected
    signed = [[byte - 128 for byte in row] for row in expected]
    assert as_lists(VectorEncoder(SPEC, "binary")(embed_result(vectors))) == signed


def test_the_last_byte_is_padded_with_zero_bits() -> None:
    vectors = np.array([[1.0, -1.0, 1.0]], dtype=np.float32)
    assert as_lists(VectorEncoder(SPEC, "ubinary")(embed_result(vectors))) == [[0b10100000]]


@given(arrays)
def test_bytes_are_linear_within_the_range_and_clipped_outside(vectors: Float32) -> None:
    unsigned = np.array(as_lists(VectorEncoder(CALIBRATED, "uint8")(embed_result(vectors))))
    signed = np.array(as_lists(VectorEncoder(CALIBRATED, "int8")(embed_result(vectors))))
    assert ((unsigned >= 0) & (unsigned <= 255)).all()
    assert np.array_equal(signed, unsigned - 128)
    low, high = RANGES.astype("f8")
    inside = (vectors > low) & (vectors < high)
    dequantized = low + (unsigned + 0.5) * (high - low) / 255
    assert (
        np.abs(dequantized - vectors)[inside] <= (((high - low) / 255) * 0.51 + 1e-6).max()
    ).all()
    assert (unsigned[vectors <= low] == 0).all()
    assert (unsigned[vectors >= high] == 255).all()


@given(arrays, st.integers(1, DIM), st.sampled_from(["int8", "uint8"]))
def test_codes_of_fewer_dimensions_are_a_prefix_of_the_full_codes(
    vectors: Float32, dimensions: int, output_type: str
) -> None:
    encoder = VectorEncoder(CALIBRATED, output_type)
    truncated = truncate_dimensions(vectors, dimensions)
    codes = as_lists(encoder(embed_result(truncated, raw=vectors)))
    assert codes == [row[:dimensions] for row in as_lists(encoder(embed_result(vectors)))]


@pytest.mark.parametrize("output_type", ["int8", "uint8"])
def test_bytes_require_calibrated_ranges(output_type: str) -> None:
    with pytest.raises(InvalidRequest, match=output_type):
        VectorEncoder(SPEC, output_type)


DTYPES = {"float": "<f4", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


@pytest.mark.parametrize("output_type", OUTPUT_TYPES)
def test_base64_decodes_to_the_same_numbers(output_type: str) -> None:
    result = embed_result(np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32))
    numbers = as_lists(VectorEncoder(CALIBRATED, output_type)(result))
    texts = VectorEncoder(CALIBRATED, output_type, as_base64=True)(result)
    decoded = [np.frombuffer(base64.b64decode(text), DTYPES[output_type]) for text in texts]
    assert as_lists(decoded) == numbers


async def test_a_large_result_is_serialized_in_parts_to_the_same_bytes() -> None:
    values = np.random.default_rng(0).standard_normal((300, 384)).astype(np.float32)
    result = embed_result(values)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count_turns())
    serialized = await serialize_rows(result)
    counter.cancel()
    assert turns > 2
    dump = partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)
    assert dump(float_rows(serialized)) == dump(float_rows(result))
    assert dump(VectorEncoder(SPEC, "float")(serialized)) == dump(float_rows(result))
