from collections.abc import Sequence
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.codec import CacheDtype, VectorCodec
from serve_app.types import Tier, Timings, VectorRow, Vectors

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
