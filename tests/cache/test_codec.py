from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.cache.codec import Int8VectorCodec, RaggedCodec, VectorCodec, task_codecs
from serve_app.types import (
    SPARSE_DTYPE,
    CacheDtype,
    RaggedVectors,
    Tier,
    Timings,
    VectorRow,
    Vectors,
)
from serve_app.types import Row as OutputRow
from tests.fakes import TEXT_TASKS

floats = st.floats(width=32, allow_nan=False)
rows = st.integers(1, 16).flatmap(
    lambda dim: st.lists(
        st.tuples(
            st.lists(floats, min_size=dim, max_size=dim),
            st.integers(0, 2**31 - 1),
            st.booleans(),
            st.sampled_from(Tier),
        ),
        min_size=1,
        max_size=4,
    )
)
Row = tuple[list[float], int, bool, Tier]


def to_vectors(rows: Sequence[Row]) -> Vectors:
    return Vectors.from_rows(
        [VectorRow(np.array(row[0], dtype=np.float32), row[1], row[2], row[3]) for row in rows],
        Timings(infer_s=0.5),
    )


@given(rows)
def test_vectors_are_decoded_bit_for_bit(rows: list[Row]) -> None:
    codec = VectorCodec(len(rows[0][0]))
    vectors = to_vectors(rows)
    encoded = codec.encode(vectors)
    decoded = codec.decode(encoded)
    assert all(map(codec.is_valid, encoded.values))
    assert decoded.values.dtype == np.float32
    assert decoded.values.tobytes() == vectors.values.tobytes()
    assert decoded.token_counts.tolist() == vectors.token_counts.tolist()
    assert decoded.truncated.tolist() == vectors.truncated.tolist()
    assert decoded.tiers.tolist() == vectors.tiers.tolist()
    assert decoded.timings == vectors.timings


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=16))
def test_half_precision_is_rounded_once(floats: list[float]) -> None:
    codec = VectorCodec(len(floats), "float16")
    encoded = codec.encode(to_vectors([(floats, 3, False, Tier.COMPUTED)]))
    decoded = codec.decode(encoded)
    assert np.abs(decoded.values[0] - np.array(floats, dtype=np.float32)).max() < 5e-4
    assert decoded.values.dtype == np.float32
    assert codec.encode(decoded).values == encoded.values
    assert len(encoded.values[0]) == 16 + 2 * len(floats)


INT8_ROWS = st.lists(
    st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5), min_size=2, max_size=4
)
RANGES = np.array([[-1, -2, 0, -0.25, 0.5], [1, 2, 1, 0.25, 0.5]], dtype=np.float32)


@given(INT8_ROWS)
def test_int8_vectors_have_the_same_bits_alone_and_among_others(rows: list[list[float]]) -> None:
    codec = Int8VectorCodec(RANGES)
    together = codec.encode(to_vectors([(row, 3, True, Tier.COMPUTED) for row in rows]))
    decoded = codec.decode(together)
    assert all(map(codec.is_valid, together.values))
    assert decoded.values.dtype == np.float32
    assert np.isfinite(decoded.values).all()
    assert decoded.truncated.all()
    for i, row in enumerate(rows):
        alone = codec.encode(to_vectors([(row, 3, True, Tier.COMPUTED)]))
        assert alone.values[0] == together.values[i]
        assert codec.decode(alone).values.tobytes() == decoded.values[i].tobytes()


@given(st.lists(st.floats(-1, 1, width=32), min_size=64, max_size=64))
def test_int8_vectors_keep_their_length_and_half_a_step_of_each_component(
    floats: list[float],
) -> None:
    codec = Int8VectorCodec(np.array([[-1] * 64, [1] * 64], dtype=np.float32))
    encoded = codec.encode(to_vectors([(floats, 3, False, Tier.COMPUTED)]))
    assert len(encoded.values[0]) == 20 + len(floats)
    (decoded,) = codec.decode(encoded).values
    exact = np.array(floats, dtype=np.float32)
    assume(np.linalg.norm(exact) > 1)  # shorter vectors may be within the steps around zero
    assert np.linalg.norm(decoded) == pytest.approx(np.linalg.norm(exact), rel=1e-5)
    rounded = decoded * np.dot(decoded, exact) / np.dot(decoded, decoded)
    assert np.linalg.norm(rounded - exact) <= np.sqrt(64) / 255 * 1.01


def test_any_changed_or_missing_byte_of_an_int8_value_is_noticed() -> None:
    codec = Int8VectorCodec(RANGES)
    (value,) = codec.encode(to_vectors([([0.5] * 5, 3, False, Tier.COMPUTED)])).values
    for i in range(len(value)):
        changed = bytearray(value)
        changed[i] ^= 1
        assert not codec.is_valid(bytes(changed))
        assert not codec.is_valid(value[:i])
    assert not VectorCodec(5).is_valid(value)


def test_the_largest_dimension() -> None:
    codec = VectorCodec(65536)
    encoded = codec.encode(to_vectors([([1.0] * 65536, 1, False, Tier.COMPUTED)]))
    assert codec.is_valid(encoded.values[0])
    assert codec.decode(encoded).values.shape == (1, 65536)


def with_valid_checksum(value: bytes) -> bytes:
    return crc32(value[4:]).to_bytes(4, "little") + value[4:]


(VALUE,) = VectorCodec(4).encode(to_vectors([([1.0] * 4, 3, False, Tier.COMPUTED)])).values


@pytest.mark.parametrize(
    "value",
    [
        b"",
        VALUE[:-1],
        VALUE + b"\0",
        VALUE[:5],
        with_valid_checksum(VALUE[:4] + b"\x01" + VALUE[5:]),
        VALUE[:-2] + b"\0\0",
        VALUE[:8] + b"\7" + VALUE[9:],
    ],
    ids=["empty", "truncated", "too long", "truncated header", "version", "vector", "tokens"],
)
def test_a_corrupt_value_is_invalid(value: bytes) -> None:
    assert not VectorCodec(4).is_valid(value)
    assert VectorCodec(4).is_valid(VALUE)


@pytest.mark.parametrize(("dim", "dtype"), [(3, "float32"), (8, "float16")])
def test_a_value_of_another_space_is_invalid(dim: int, dtype: CacheDtype) -> None:
    assert not VectorCodec(dim, dtype).is_valid(VALUE)


def ragged(rows: list[OutputRow]) -> RaggedVectors:
    n = len(rows)
    return RaggedVectors(
        rows,
        np.arange(1, n + 1, dtype=np.int32),
        np.array([i % 2 == 1 for i in range(n)]),
        np.full(n, Tier.COMPUTED, dtype=np.uint8),
    )


TOKEN_VECTORS = [np.ones((3, 4), np.float32), np.zeros((1, 4), np.float32)]
SPARSE_VECTORS = [
    np.array([(2, 0.5), (7, 1.5)], SPARSE_DTYPE),
    np.array([], SPARSE_DTYPE),  # a text none of whose tokens has a weight
]


@pytest.mark.parametrize(
    ("rows", "sparse"), [(TOKEN_VECTORS, False), (SPARSE_VECTORS, True)], ids=["tokens", "sparse"]
)
def test_rows_of_different_lengths_are_decoded_as_they_were(
    rows: list[OutputRow], sparse: bool
) -> None:
    codec = RaggedCodec(sparse=sparse)
    encoded = codec.encode(ragged(rows))
    assert all(map(codec.is_valid, encoded.values))
    decoded = codec.decode(encoded)
    for row, expected in zip(decoded.values, rows, strict=True):
        assert (row.dtype, row.shape) == (expected.dtype, expected.shape)
        assert row.tobytes() == expected.tobytes()
    assert decoded.token_counts.tolist() == [1, 2]
    assert decoded.truncated.tolist() == [False, True]


@pytest.mark.parametrize("sparse", [True, False])
def test_any_changed_or_missing_byte_of_a_ragged_value_is_noticed(sparse: bool) -> None:
    codec = RaggedCodec(sparse=sparse)
    value = codec.encode(ragged(SPARSE_VECTORS if sparse else TOKEN_VECTORS)).values[0]
    for i in range(len(value)):
        changed = bytearray(value)
        changed[i] ^= 1
        assert not codec.is_valid(bytes(changed))
        assert not codec.is_valid(value[:i])
    assert not codec.is_valid(value + b"\0")
    assert not VectorCodec(4).is_valid(value)


def test_a_model_has_a_codec_for_each_of_its_tasks() -> None:
    codecs = task_codecs(TEXT_TASKS)
    assert codecs.keys() == set(TEXT_TASKS.tasks)
    scores = codecs["rerank"].encode(to_vectors([([0.5], 3, False, Tier.COMPUTED)]))
    assert codecs["classify"].is_valid(scores.values[0])
    assert not codecs["embed"].is_valid(scores.values[0])
