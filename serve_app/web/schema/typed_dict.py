"""JSON Schema of replies, generated from the types of the functions that build them."""

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    VECTOR,
    Schema,
    any_of,
    array,
    enum,
    object_,
)

#: A row of components in a reply; orjson writes NumPy arrays as they are.
Vector = Annotated[Any, VECTOR]

_SCALARS: dict[Any, Schema] = {
    Any: {},
    str: STRING,
    bool: BOOLEAN,
    int: INTEGER,
    float: NUMBER,
    NoneType: {"type": "null"},
}


def schema_of(type_: Any) -> Schema:
    """Returns the JSON Schema of a type, without references.

    Args:
        type_: a TypedDict, a `Literal` of strings, a sequence, a union, a scalar, or
            `Annotated[…, schema]` with the schema of what the type can't express.

    Raises:
        TypeError: the type is none of these.
    """
    origin, args = get_origin(type_), get_args(type_)
    if is_typeddict(type_):
        hints = get_type_hints(type_, include_extras=True)
        properties = {name: schema_of(hint) for name, hint in hints.items()}
        return object_(properties, optional=tuple(type_.__optional_keys__))
    if origin is Annotated:
        schema: Schema = args[1]
        return schema
    if origin in (Required, NotRequired):
        return schema_of(args[0])
    if origin is Literal:
        return enum(args)
    if origin in (Union, UnionType):
        return any_of(*map(schema_of, args))
    if origin in (list, Sequence):
        return array(schema_of(args[0]))
    if type_ in _SCALARS:
        return _SCALARS[type_]
    raise TypeError(f"{type_} has no JSON Schema here. Annotate it with one.")
