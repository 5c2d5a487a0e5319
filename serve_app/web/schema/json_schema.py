"""JSON Schema, as far as requests and replies need it (2020-12, as OpenAPI 3.1 takes it)."""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
#: The id of a token; no vocabulary is larger.
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
VECTOR: Schema = {"type": "array", "items": NUMBER}


def array(item: Schema, **bounds: int) -> Schema:
    """A list of such items; bounds as `minItems`."""
    return {"type": "array", "items": item, **bounds}


def enum(choices: Sequence[str]) -> Schema:
    """One of some strings."""
    return {"type": "string", "enum": list(choices)}


def any_of(*schemas: Schema) -> Schema:
    """Of one of these shapes."""
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    """Of this shape, or null."""
    return any_of(schema, {"type": "null"})


def object_(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """An object with these properties, which it has all but the optional ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def exactly_one(name: str, other: str) -> Schema:
    """What is added to an object that has one of two lists, and not the other."""
    return {
        "oneOf": [
            {"required": [one], "properties": {one: {"type": "array"}}} for one in (name, other)
        ]
    }
