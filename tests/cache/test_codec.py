from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.codec import CacheDtype, Codec
from serve_app.types import Tier, VectorRow

vectors = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=16)


@given(vectors, st.integers(0, 2**32 - 1), st.booleans())
def test_a_row_is_decoded_bit_for_bit(floats: list[float], tokens: int, truncated: bool) -> None:
    codec = Codec(len(floats))
    row = VectorRow(np.array(floats, dtype=np.float32), tokens, truncated, Tier.COMPUTED)
    decoded = codec.decode(codec.encode(row), Tier.L2)
    assert decoded is not None
    assert decoded.vector.tobytes() == row.vector.tobytes()
    assert decoded[1:] == (tokens, truncated, Tier.L2)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=16))
def test_half_precision_is_decoded_as_rounded(floats: list[float]) -> None:
    codec = Codec(len(floats), "float16")
    rounded = codec.round(np.array([floats], dtype=np.float32))
    assert np.abs(rounded - np.array(floats, dtype=np.float32)).max() < 5e-4
    value = codec.encode(VectorRow(rounded[0], 3, False, Tier.COMPUTED))
    decoded = codec.decode(value, Tier.L1)
    assert decoded is not None
    assert decoded.vector.dtype == np.float32
    assert decoded.vector.tobytes() == rounded[0].tobytes()
    assert len(value) == 16 + 2 * len(floats)


def test_the_largest_dimension() -> None:
    codec = Codec(65536)
    row = VectorRow(np.ones(65536, dtype=np.float32), 1, False, Tier.COMPUTED)
    assert codec.decode(codec.encode(row), Tier.L1) is not None


def with_valid_checksum(value: bytes) -> bytes:
    return crc32(value[4:]).to_bytes(4, "little") + value[4:]


ROW = VectorRow(np.ones(4, dtype=np.float32), 3, False, Tier.COMPUTED)
VALUE = Codec(4).encode(ROW)


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
def test_a_corrupt_value_is_a_miss(value: bytes) -> None:
    assert Codec(4).decode(value, Tier.L1) is None
    assert Codec(4).decode(VALUE, Tier.L1) is not None


@pytest.mark.parametrize(("dim", "dtype"), [(3, "float32"), (8, "float16")])
def test_a_value_of_another_space_is_a_miss(dim: int, dtype: CacheDtype) -> None:
    assert Codec(dim, dtype).decode(VALUE, Tier.L1) is None
