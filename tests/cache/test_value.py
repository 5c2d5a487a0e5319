import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.value import decode, encode

vectors = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=16)


@given(vectors, st.integers(0, 2**32 - 1), st.booleans())
def test_comes_back_bit_for_bit(floats: list[float], tokens: int, truncated: bool) -> None:
    vector = np.array(floats, dtype=np.float32)
    back = decode(encode(vector, tokens, truncated), len(floats))
    assert back is not None
    assert back.vector.tobytes() == vector.tobytes()
    assert (back.tokens, back.truncated) == (tokens, truncated)


VALUE = encode(np.ones(4, dtype=np.float32), 3, False)


@pytest.mark.parametrize(
    "value",
    [b"", VALUE[:-1], VALUE + b"\0", VALUE[:5], b"\x02" + VALUE[1:]],
    ids=["nothing", "torn", "too long", "torn header", "other version"],
)
def test_what_does_not_parse_is_a_miss(value: bytes) -> None:
    assert decode(value, 4) is None


def test_another_width_is_a_miss() -> None:
    assert decode(VALUE, 3) is None
