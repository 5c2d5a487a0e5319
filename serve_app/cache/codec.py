"""Encodes cache values: a full-size vector and the text's token count.

    CRC-32 u32 | version u8 | flags u8 | 0 u16 | tokens u32 | dim u32 | dim x float, little-endian

The checksum covers all bytes that follow it. Truncated dimensions and other encodings are derived
from the value when it is read, so one value serves them all.
"""

import struct
from typing import Literal
from zlib import crc32

import numpy as np

from serve_app.types import Float32, Tier, VectorRow

#: Stored component type. float16 halves the size and rounds, so its vectors are a space of their
#: own.
CacheDtype = Literal["float32", "float16"]

_CHECKSUM = struct.Struct("<I")
_HEADER = struct.Struct("<IBBxxII")
_VERSION = 2
_TRUNCATED = 1


class Codec:
    """Encodes and decodes the values of one space."""

    def __init__(self, dim: int, dtype: CacheDtype = "float32") -> None:
        self._dim = dim
        self._half = dtype == "float16"
        self._dtype = np.dtype("<f2" if self._half else "<f4")
        self._size = _HEADER.size + dim * self._dtype.itemsize

    def round(self, vectors: Float32) -> Float32:
        """Returns vectors at stored precision, so that a miss returns the same bits as a hit."""
        return vectors.astype(np.float16).astype(np.float32) if self._half else vectors

    def encode(self, row: VectorRow) -> bytes:
        """Returns the value of a row, whose vector has shape (dim,)."""
        flags = _TRUNCATED if row.truncated else 0
        header = _HEADER.pack(0, _VERSION, flags, row.token_count, self._dim)[_CHECKSUM.size :]
        body = header + row.vector.astype(self._dtype, copy=False).tobytes()
        return _CHECKSUM.pack(crc32(body)) + body

    def decode(self, value: bytes, tier: Tier) -> VectorRow | None:
        """Returns the row of a value; None if the value is corrupt or of another space.

        At float32, the vector is a read-only view of the value.
        """
        if len(value) != self._size:
            return None
        checksum, version, flags, tokens, dim = _HEADER.unpack_from(value)
        if version != _VERSION or dim != self._dim:
            return None
        if checksum != crc32(memoryview(value)[_CHECKSUM.size :]):
            return None
        vector = np.frombuffer(value, self._dtype, offset=_HEADER.size)
        if self._half:
            vector = vector.astype(np.float32)
        return VectorRow(vector, tokens, bool(flags & _TRUNCATED), tier)
