"""Encodes cache values: a full-size vector and the text's token count.

    CRC-32 u32 | version u8 | truncated u8 | 0 u16 | tokens u32 | dim u32 | dim x float

Numbers are little-endian, and the checksum covers all bytes that follow it. Truncated dimensions
and other encodings are derived from the value when it is read, so one value serves them all.
"""

from typing import Literal
from zlib import crc32

import numpy as np

from serve_app.types import EncodedVectors, Vectors

#: Stored component type. float16 halves the size and rounds, so its vectors are a space of their
#: own.
CacheDtype = Literal["float32", "float16"]

_CHECKSUM_BYTES = 4
_VERSION = 2


class Codec:
    """Encodes and decodes the values of one space."""

    def __init__(self, dim: int, dtype: CacheDtype = "float32") -> None:
        component = "<f2" if dtype == "float16" else "<f4"
        self._value = np.dtype(
            [
                ("checksum", "<u4"),
                ("version", "u1"),
                ("truncated", "?"),
                ("reserved", "<u2"),
                ("token_count", "<u4"),
                ("dim", "<u4"),
                ("vector", component, (dim,)),
            ]
        )
        self._dim = dim

    def encode(self, vectors: Vectors) -> EncodedVectors:
        """Returns one value for each text."""
        values = np.zeros(len(vectors.values), self._value)
        values["version"] = _VERSION
        values["truncated"] = vectors.truncated
        values["token_count"] = vectors.token_counts
        values["dim"] = self._dim
        values["vector"] = vectors.values
        return EncodedVectors(
            [_with_checksum(value.tobytes()) for value in values],
            vectors.tiers.tobytes(),
            vectors.timings,
        )

    def decode(self, encoded: EncodedVectors) -> Vectors:
        """Returns the vectors, of shape (n, dim). They may be a read-only view of one value."""
        values = np.frombuffer(b"".join(encoded.values), self._value)
        return Vectors(
            np.ascontiguousarray(values["vector"], dtype=np.float32),
            values["token_count"].astype(np.int32),
            values["truncated"],
            np.frombuffer(encoded.tiers, dtype=np.uint8),
            encoded.timings,
        )

    def is_valid(self, value: bytes) -> bool:
        """Returns False if a value is corrupt or of another space."""
        if len(value) != self._value.itemsize:
            return False
        header = np.frombuffer(value, self._value)
        return bool(
            header["version"][0] == _VERSION
            and header["dim"][0] == self._dim
            and header["checksum"][0] == crc32(memoryview(value)[_CHECKSUM_BYTES:])
        )


def _with_checksum(value: bytes) -> bytes:
    body = value[_CHECKSUM_BYTES:]
    return crc32(body).to_bytes(_CHECKSUM_BYTES, "little") + body
