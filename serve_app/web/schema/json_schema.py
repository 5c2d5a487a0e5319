"""Builders of JSON Schema 2020-12, the dialect of OpenAPI 3.1."""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
#: Token ids fit into int32: no vocabulary is larger.
TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
VECTOR: Schema = {"type": "array", "items": NUMBER}


def array(item: Schema, **bounds: int) -> Schema:
    """Returns the schema of a list; `bounds` are keywords such as `minItems`."""
    return {"type": "array", "items": item, **bounds}


def enum(choices: Sequence[str]) -> Schema:
    """Returns the schema of a string among `choices`."""
    return {"type": "string", "enum": list(choices)}


def any_of(*schemas: Schema) -> Schema:
    """Returns the schema of a value that matches at least one of `schemas`."""
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    """Returns the schema of a value that matches `schema` or is null."""
    return any_of(schema, {"type": "null"})


def object_(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """Returns the schema of an object; every property is required unless it is in `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def exactly_one(*names: str) -> Schema:
    """Returns keywords for an object schema: exactly one of these properties is not null."""
    present = {"not": {"type": "null"}}
    return {"oneOf": [{"required": [name], "properties": {name: present}} for name in names]}
