"""The types that vectors are written in."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.service.quantization import quantize
from serve_app.types import EmbedResult
from serve_app.web.schema.fields import EnumField, EnumListField, Scope
from serve_app.web.schema.json_schema import INTEGER, STRING, VECTOR, Schema, any_of, array, enum

#: What vectors are written as. A bit is 1 where a component is above zero; `ubinary` packs eight
#: of them into a byte, the first one highest, `binary` is that less 128. `int8` and `uint8` are the
#: place of a component among 256 steps between the least and the greatest that it takes, which are
#: fixed for a model.
OutputType = Literal["float", "int8", "uint8", "binary", "ubinary"]

OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)
_CALIBRATED = ("int8", "uint8")
_DTYPES = ("base64", *OUTPUT_TYPES)
EMBEDDING: Schema = any_of(VECTOR, array(INTEGER), STRING)


@dataclass(frozen=True, slots=True)
class VectorType(EnumField):
    """A field: the type that vectors are wanted in."""

    choices: tuple[str, ...] = _DTYPES

    def _kind(self, scope: Scope) -> Schema:
        return enum(_known(scope))


@dataclass(frozen=True, slots=True)
class VectorTypes(EnumListField):
    """A field: the types that vectors are wanted in."""

    choices: tuple[str, ...] = _DTYPES

    def _kind(self, scope: Scope) -> Schema:
        return array(enum(_known(scope)))


def _known(scope: Scope) -> Sequence[str]:
    has_ranges = scope.spec.quantization_ranges is not None
    return [kind for kind in _DTYPES if has_ranges or kind not in _CALIBRATED]


class Encoder:
    """Writes a result's vectors in one type, as JSON takes it: rows of an array, or base64."""

    def __init__(self, spec: ModelSpec, output: str | None, *, as_base64: bool = False) -> None:
        """An encoder.

        Raises:
            InvalidRequest: the model has no ranges for int8 and uint8.
        """
        self._output: OutputType = "float" if output in (None, "base64") else output  # type: ignore[assignment]
        self._as_base64 = as_base64 or output == "base64"
        self._ranges = spec.quantization_ranges
        if self._output in _CALIBRATED and spec.quantization_ranges is None:
            raise InvalidRequest(
                f"The model has no calibrated ranges for {self._output}. Take 'float', 'binary' or "
                "'ubinary'."
            )

    def __call__(self, result: EmbedResult) -> Sequence[Any]:
        """Each of n vectors.

        Float components are little-endian float32 in base64, and keep every bit as decimals too,
        since the shortest decimal of a float32 reads back as the same float32.
        """
        rows = self._rows(result)
        if self._as_base64:
            return [base64.b64encode(row.tobytes()).decode() for row in rows]
        return list(rows)

    def _rows(self, result: EmbedResult) -> Any:
        vectors, n = result.vectors, result.vectors.shape[1]
        match self._output:
            case "float":
                return vectors.astype("<f4", copy=False)
            case "int8" | "uint8":
                assert self._ranges is not None, "Looked at when it was asked for."
                raw = vectors if result.raw is None else result.raw
                return quantize(raw[:, :n], self._ranges, self._output)
            case "ubinary":
                return np.packbits(vectors > 0, axis=1)
            case "binary":
                packed = np.packbits(vectors > 0, axis=1).astype(np.int16)
                return (packed - 128).astype(np.int8)


def as_floats(result: EmbedResult) -> Sequence[Any]:
    """Each of n vectors, as a row of float32."""
    return list(result.vectors.astype("<f4", copy=False))
