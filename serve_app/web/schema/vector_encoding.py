"""Output types of vectors: the fields that select them, and the encoder: result → JSON values."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import orjson

from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.quantization import quantize
from serve_app.results import EmbedResult
from serve_app.web.schema.fields import EnumField, EnumListField, SchemaContext
from serve_app.web.schema.json_schema import INTEGER, STRING, VECTOR, Schema, any_of, array, enum

#: - `float`: float32.
#: - `int8`, `uint8`: scalar quantization with per-dimension ranges, calibrated once per model.
#: - `ubinary`: one bit per dimension, 1 where the value is above zero, packed into bytes with the
#:   most significant bit first.
#: - `binary`: the same bytes minus 128, as int8.
OutputType = Literal["float", "int8", "uint8", "binary", "ubinary"]

OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)
_CALIBRATED_TYPES = ("int8", "uint8")
_CHOICES = ("base64", *OUTPUT_TYPES)
#: Numbers that are serialized at once: about a millisecond.
_MAX_SERIALIZED_VALUES = 32768
EMBEDDING: Schema = any_of(VECTOR, array(INTEGER), STRING)


@dataclass(frozen=True, slots=True)
class OutputTypeField(EnumField):
    """The output type of the vectors."""

    choices: tuple[str, ...] = _CHOICES

    def _value_schema(self, context: SchemaContext) -> Schema:
        return enum(_supported_choices(context.spec))


@dataclass(frozen=True, slots=True)
class OutputTypesField(EnumListField):
    """A list of output types: the reply has the vectors in each of them."""

    choices: tuple[str, ...] = _CHOICES

    def _value_schema(self, context: SchemaContext) -> Schema:
        return array(enum(_supported_choices(context.spec)))


def _supported_choices(spec: ModelSpec) -> Sequence[str]:
    has_ranges = spec.quantization_ranges is not None
    return [choice for choice in _CHOICES if has_ranges or choice not in _CALIBRATED_TYPES]


class VectorEncoder:
    """Encodes the vectors of a result in one output type: as rows of an array, or as base64."""

    def __init__(
        self, spec: ModelSpec, output_type: str | None, *, as_base64: bool = False
    ) -> None:
        """An encoder for one model.

        Args:
            spec: the model.
            output_type: an `OutputType`; None means `float`, and `base64` means `float` as base64.
            as_base64: whether each vector is the base64 of its bytes instead of a list of numbers.

        Raises:
            InvalidRequest: the model has no calibrated ranges for int8 and uint8.
        """
        is_float = output_type in (None, "base64")
        self._output_type: OutputType = "float" if is_float else output_type  # type: ignore[assignment]
        self._as_base64 = as_base64 or output_type == "base64"
        self._ranges = spec.quantization_ranges
        if self._output_type in _CALIBRATED_TYPES and self._ranges is None:
            raise InvalidRequest(
                f"The model has no calibrated ranges for {self._output_type}. Take 'float', "
                "'binary' or 'ubinary'."
            )

    @property
    def is_float(self) -> bool:
        """Whether the values are lists of float32."""
        return self._output_type == "float" and not self._as_base64

    def __call__(self, result: EmbedResult) -> Sequence[Any]:
        """Returns one JSON value for each vector: a row of an array, or a base64 string.

        Both forms of float keep every bit: base64 holds little-endian float32, and the shortest
        decimal of a float32 parses back to the same float32.
        """
        if self.is_float:
            return float_rows(result)
        rows = self._encode(result)
        if self._as_base64:
            return [base64.b64encode(row.tobytes()).decode() for row in rows]
        return list(rows)

    def _encode(self, result: EmbedResult) -> Any:
        """Returns the encoded vectors, of shape (n, dimensions) or (n, bytes per vector)."""
        vectors, dimensions = result.vectors, result.vectors.shape[1]
        match self._output_type:
            case "float":
                return vectors.astype("<f4", copy=False)
            case "int8" | "uint8":
                assert self._ranges is not None, "The constructor checks it. This is a bug."
                # The ranges are calibrated for full vectors, before they are normalized again.
                full = vectors if result.raw is None else result.raw
                return quantize(full[:, :dimensions], self._ranges, self._output_type)
            case "ubinary":
                return np.packbits(vectors > 0, axis=1)
            case "binary":
                packed = np.packbits(vectors > 0, axis=1).astype(np.int16)
                return (packed - 128).astype(np.int8)


def float_rows(result: EmbedResult) -> Sequence[Any]:
    """Returns each of the n vectors as a row of little-endian float32, or as JSON."""
    if result.json_rows is not None:
        return result.json_rows
    return list(result.vectors.astype("<f4", copy=False))


async def serialize_rows(result: EmbedResult) -> EmbedResult:
    """Returns a result whose vectors are serialized as JSON numbers, if it is large.

    That takes tens of milliseconds for thousands of vectors. The event loop runs other requests in
    between.
    """
    vectors = result.vectors.astype("<f4", copy=False)
    if vectors.size <= _MAX_SERIALIZED_VALUES:
        return result
    rows: list[Any] = []
    step = max(1, _MAX_SERIALIZED_VALUES // vectors.shape[1])
    for start in range(0, len(vectors), step):
        for vector in vectors[start : start + step]:
            rows.append(orjson.Fragment(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)))
        await asyncio.sleep(0)
    return replace(result, json_rows=rows)
