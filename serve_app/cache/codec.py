"""Encodes cache values: the output of one input, and its token count.

    CRC-32 u32 | version u8 | truncated u8 | 0 u16 | tokens u32 | dim u32 | dim x float
    CRC-32 u32 | version u8 | truncated u8 | 0 u16 | tokens u32 | dim u32 | scale float | dim x u8
    CRC-32 u32 | version u8 | truncated u8 | 0 u16 | tokens u32 | rows u32 | columns u32 | items

The first format is that of vectors and scores, the second that of vectors at int8, and the third
that of token vectors and sparse vectors.
Numbers are little-endian, and the checksum covers all bytes that follow it. Truncated dimensions
and other encodings are derived from the value when it is read, so one value serves them all.
"""

import struct
from collections.abc import Mapping
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve_app.models import ModelSpec
from serve_app.quantization import dequantize, quantize
from serve_app.tasks import Task
from serve_app.types import (
    SPARSE_DTYPE,
    CacheDtype,
    EncodedVectors,
    Float32,
    Outputs,
    RaggedVectors,
    Row,
    Vectors,
)

_CHECKSUM_BYTES = 4
_VERSION = 2


class Codec(Protocol):
    """Encodes and decodes the outputs of one task of a model."""

    def encode(self, outputs: Any) -> EncodedVectors:
        """Returns one value for each input."""
        ...

    def decode(self, encoded: EncodedVectors) -> Outputs:
        """Returns the outputs. They may be read-only views of the values."""
        ...

    def is_valid(self, value: bytes) -> bool:
        """Returns False if a value is corrupt or of another space."""
        ...


def task_codecs(spec: ModelSpec, dtype: CacheDtype = "float32") -> Mapping[Task, Codec]:
    """Returns the codec of each task of a model.

    Args:
        spec: the model.
        dtype: component type of its vectors; `int8` needs the model's `quantization_ranges`.
            Scores, token vectors and sparse vectors are float32.
    """
    return {task: _codec(spec, task, dtype) for task in spec.tasks}


def _codec(spec: ModelSpec, task: Task, dtype: CacheDtype) -> Codec:
    if task in ("embed", "embed_images"):
        if dtype == "int8":
            assert spec.quantization_ranges is not None
            return Int8VectorCodec(spec.quantization_ranges)
        return VectorCodec(spec.dim, dtype)
    if task in ("rerank", "classify"):
        return VectorCodec(max(1, len(spec.labels)))
    return RaggedCodec(sparse=task == "embed_sparse")


class VectorCodec:
    """Encodes and decodes vectors of one width."""

    def __init__(self, dim: int, dtype: CacheDtype = "float32") -> None:
        component = "<f2" if dtype == "float16" else "<f4"
        self._dim = dim
        self._value = self._value_type(("vector", component, (dim,)))

    def _value_type(self, *fields: Any) -> np.dtype[np.void]:
        return np.dtype(
            [
                ("checksum", "<u4"),
                ("version", "u1"),
                ("truncated", "?"),
                ("reserved", "<u2"),
                ("token_count", "<u4"),
                ("dim", "<u4"),
                *fields,
            ]
        )

    def encode(self, vectors: Vectors) -> EncodedVectors:
        """Returns one value for each text."""
        values = np.zeros(len(vectors.values), self._value)
        values["version"] = _VERSION
        values["truncated"] = vectors.truncated
        values["token_count"] = vectors.token_counts
        values["dim"] = self._dim
        self._store(values, vectors.values)
        return EncodedVectors(
            [_with_checksum(value.tobytes()) for value in values],
            vectors.tiers.tobytes(),
            vectors.timings,
        )

    def decode(self, encoded: EncodedVectors) -> Vectors:
        """Returns the vectors, of shape (n, dim). They may be a read-only view of one value."""
        values = np.frombuffer(b"".join(encoded.values), self._value)
        return Vectors(
            self._load(values),
            values["token_count"].astype(np.int32),
            values["truncated"],
            np.frombuffer(encoded.tiers, dtype=np.uint8),
            encoded.timings,
        )

    def _store(self, values: NDArray[Any], vectors: Float32) -> None:
        """Writes vectors of shape (n, dim) into n values."""
        values["vector"] = vectors

    def _load(self, values: NDArray[Any]) -> Float32:
        """Returns the vectors of n values, shape (n, dim)."""
        return np.ascontiguousarray(values["vector"], dtype=np.float32)

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


class Int8VectorCodec(VectorCodec):
    """Encodes and decodes vectors as one byte per component, with per-dimension ranges.

    The scale that a value holds restores the length of the vector. It is computed once, where the
    vector is encoded, so that decoding adds nothing up and has the same bits on every machine.
    """

    def __init__(self, ranges: Float32) -> None:
        """Creates a codec.

        Args:
            ranges: shape (2, dim): the minimum and the maximum of each component.
        """
        self._dim = ranges.shape[1]
        self._ranges = ranges
        self._value = self._value_type(("scale", "<f4"), ("vector", "u1", (self._dim,)))

    def _store(self, values: NDArray[Any], vectors: Float32) -> None:
        codes = quantize(vectors, self._ranges, "uint8")
        lengths = np.linalg.norm(vectors, axis=1)
        rounded = np.linalg.norm(dequantize(codes, self._ranges), axis=1)
        values["scale"] = lengths / np.where(rounded == 0, 1, rounded)
        values["vector"] = codes

    def _load(self, values: NDArray[Any]) -> Float32:
        vectors: Float32 = dequantize(values["vector"], self._ranges)
        vectors *= values["scale"][:, np.newaxis]
        return vectors


class RaggedCodec:
    """Encodes and decodes token vectors or sparse vectors."""

    _HEADER = struct.Struct("<BBHIII")  # all fields before the items but the checksum

    def __init__(self, *, sparse: bool) -> None:
        self._sparse = sparse

    def encode(self, outputs: RaggedVectors) -> EncodedVectors:
        """Returns one value for each input."""
        rows = zip(
            outputs.values, outputs.token_counts.tolist(), outputs.truncated.tolist(), strict=True
        )
        values = []
        for row, tokens, truncated in rows:
            columns = 2 if self._sparse else row.shape[1]
            header = self._HEADER.pack(_VERSION, truncated, 0, tokens, len(row), columns)
            values.append(_with_checksum(bytes(_CHECKSUM_BYTES) + header + row.tobytes()))
        return EncodedVectors(values, outputs.tiers.tobytes(), outputs.timings)

    def decode(self, encoded: EncodedVectors) -> RaggedVectors:
        """Returns the rows. They are read-only views of the values."""
        rows, counts, truncated = list[Row](), list[int](), list[bool]()
        for value in encoded.values:
            _, cut, _, tokens, n, columns = self._HEADER.unpack_from(value, _CHECKSUM_BYTES)
            offset = _CHECKSUM_BYTES + self._HEADER.size
            if self._sparse:
                rows.append(np.frombuffer(value, SPARSE_DTYPE, n, offset))
            else:
                flat = np.frombuffer(value, np.float32, n * columns, offset)
                rows.append(flat.reshape(n, columns))
            counts.append(tokens)
            truncated.append(bool(cut))
        return RaggedVectors(
            rows,
            np.array(counts, dtype=np.int32),
            np.array(truncated, dtype=np.bool_),
            np.frombuffer(encoded.tiers, dtype=np.uint8),
            encoded.timings,
        )

    def is_valid(self, value: bytes) -> bool:
        """Returns False if a value is corrupt."""
        if len(value) < _CHECKSUM_BYTES + self._HEADER.size:
            return False
        version, _, _, _, n, columns = self._HEADER.unpack_from(value, _CHECKSUM_BYTES)
        size = _CHECKSUM_BYTES + self._HEADER.size + 4 * n * columns
        return (
            version == _VERSION
            and len(value) == size
            and int.from_bytes(value[:_CHECKSUM_BYTES], "little")
            == crc32(memoryview(value)[_CHECKSUM_BYTES:])
        )


def _with_checksum(value: bytes) -> bytes:
    body = value[_CHECKSUM_BYTES:]
    return crc32(body).to_bytes(_CHECKSUM_BYTES, "little") + body
