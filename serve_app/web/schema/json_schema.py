"""JSON Schema, as far as requests and replies need it (2020-12, as OpenAPI 3.1 takes it)."""

from collections.abc import Mapping, Sequence
from typing import Any

Shape = dict[str, Any]

STRING: Shape = {"type": "string"}
INTEGER: Shape = {"type": "integer"}
NUMBER: Shape = {"type": "number"}
BOOLEAN: Shape = {"type": "boolean"}
#: The id of a token; no vocabulary is larger.
TOKEN: Shape = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
VECTOR: Shape = {"type": "array", "items": NUMBER}


def listed(item: Shape, **bounds: int) -> Shape:
    """A list of such items; bounds as `minItems`."""
    return {"type": "array", "items": item, **bounds}


def words(choices: Sequence[str]) -> Shape:
    """One of some strings."""
    return {"type": "string", "enum": list(choices)}


def either(*shapes: Shape) -> Shape:
    """Of one of these shapes."""
    return {"anyOf": list(shapes)}


def or_null(shape: Shape) -> Shape:
    """Of this shape, or null."""
    return either(shape, {"type": "null"})


def thing(properties: Mapping[str, Shape], optional: Sequence[str] = ()) -> Shape:
    """An object with these properties, which it has all but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def just_one(name: str, other: str) -> Shape:
    """What is added to an object that has one of two lists, and not the other."""
    return {
        "oneOf": [
            {"required": [one], "properties": {one: {"type": "array"}}} for one in (name, other)
        ]
    }
