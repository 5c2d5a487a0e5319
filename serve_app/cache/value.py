"""Cache values: one vector at full size and float32, with what else a reply tells of its text.

    version u8 | flags u8 | dim u16 | tokens u32 | dim x float32, all little-endian

Shorter vectors, other number types and encodings are derived when a value is read, so one
value serves them all.
"""

import struct
from typing import NamedTuple

import numpy as np

from serve_app.types import Float32

_HEADER = struct.Struct("<BBHI")
_VERSION = 1
_TRUNCATED = 1


class CachedVector(NamedTuple):
    """A value, read."""

    vector: Float32  #: shape (dim,), read-only view of the value's bytes
    tokens: int
    truncated: bool


def encode(vector: Float32, tokens: int, truncated: bool) -> bytes:
    """The bytes to keep for a vector of shape (dim,)."""
    header = _HEADER.pack(_VERSION, _TRUNCATED if truncated else 0, vector.shape[0], tokens)
    return header + vector.astype("<f4", copy=False).tobytes()


def decode(value: bytes, dim: int) -> CachedVector | None:
    """What the bytes hold; None when they are torn, of another version, or of another width."""
    if len(value) != _HEADER.size + 4 * dim:
        return None
    version, flags, width, tokens = _HEADER.unpack_from(value)
    if version != _VERSION or width != dim:
        return None
    vector = np.frombuffer(value, dtype="<f4", offset=_HEADER.size)
    return CachedVector(vector, tokens, bool(flags & _TRUNCATED))
