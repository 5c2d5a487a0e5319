"""Cache values: one vector at full size, with what else a reply tells of its text.

    CRC-32 u32 | version u8 | flags u8 | 0 u16 | tokens u32 | dim u32 | dim x float, little-endian

The checksum is that of all bytes behind it. Shorter vectors, other number types and encodings are
derived when a value is read, so one value serves them all.
"""

import struct
from typing import Literal
from zlib import crc32

import numpy as np

from serve_app.types import Float32, Tier, VectorRow

#: What vectors are kept as. float16 takes half of the room and rounds: its space is another one.
CacheDtype = Literal["float32", "float16"]

_CHECKSUM = struct.Struct("<I")
_HEAD = struct.Struct("<IBBxxII")
_VERSION = 2
_TRUNCATED = 1


class Codec:
    """Writes and reads the values of one space."""

    def __init__(self, dim: int, dtype: CacheDtype = "float32") -> None:
        self._dim = dim
        self._half = dtype == "float16"
        self._dtype = np.dtype("<f2" if self._half else "<f4")
        self._bytes = _HEAD.size + dim * self._dtype.itemsize

    def round(self, vectors: Float32) -> Float32:
        """Vectors as they will be read again, so that a miss gives the bits that a hit gives."""
        return vectors.astype(np.float16).astype(np.float32) if self._half else vectors

    def encode(self, row: VectorRow) -> bytes:
        """The bytes to keep for a row; its vector has shape (dim,)."""
        flags = _TRUNCATED if row.truncated else 0
        head = _HEAD.pack(0, _VERSION, flags, row.tokens, self._dim)[_CHECKSUM.size :]
        body = head + row.vector.astype(self._dtype, copy=False).tobytes()
        return _CHECKSUM.pack(crc32(body)) + body

    def decode(self, value: bytes, tier: Tier) -> VectorRow | None:
        """What the bytes hold; None where they aren't a value of this space, whole and unchanged.

        The vector is a read-only view of the bytes where they are float32.
        """
        if len(value) != self._bytes:
            return None
        checksum, version, flags, tokens, dim = _HEAD.unpack_from(value)
        if version != _VERSION or dim != self._dim:
            return None
        if checksum != crc32(memoryview(value)[_CHECKSUM.size :]):
            return None
        vector = np.frombuffer(value, self._dtype, offset=_HEAD.size)
        if self._half:
            vector = vector.astype(np.float32)
        return VectorRow(vector, tokens, bool(flags & _TRUNCATED), tier)
