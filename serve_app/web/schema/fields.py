"""Field definitions: each field of a request body parses its value and describes its JSON Schema.

A dialect declares the fields of a route once; the parser and the OpenAPI document share them.
`field(body)` returns the value, or raises `InvalidRequest` where it is invalid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

from serve_app.config import RequestSettings
from serve_app.errors import EmptyInput, InvalidRequest, short_repr
from serve_app.inputs import Input
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    STRING,
    TOKEN_ID,
    Schema,
    any_of,
    array,
    enum,
    exactly_one,
    nullable,
    object_,
)

Body = Mapping[str, Any]
T = TypeVar("T")

_INT32_MAX = 2**31 - 1
_EXAMPLE_TEXT = "Hello, world"


class SchemaContext(NamedTuple):
    """The models and the limits that the schemas of a service depend on."""

    specs: tuple[ModelSpec, ...]  #: the default model first
    settings: RequestSettings
    defaults: Mapping[Task, ModelSpec] = {}  #: the default model of tasks; else the first model
    aliases: tuple[str, ...] = ()  #: further names in requests

    @property
    def spec(self) -> ModelSpec:
        """The default model."""
        return self.specs[0]

    def for_task(self, task: Task | None) -> Self:
        """Returns the context with the default model of a task as the default one."""
        default = self.spec if task is None else self.defaults.get(task, self.spec)
        return self._replace(specs=tuple(sorted(self.specs, key=lambda spec: spec is not default)))

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names of models that requests may have."""
        names = (name for spec in self.specs for name in (spec.name, *spec.aliases))
        return (*names, *self.aliases)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request body. An optional field that is null counts as absent."""

    name: str
    description: str
    required: bool = False
    exclusive_with: str | None = None  #: another field; a request has exactly one of the two

    def schema(self, context: SchemaContext) -> Schema:
        """Returns the schema of the field, with its description."""
        schema = self._value_schema(context)
        schema = schema if self.required else nullable(schema)
        return schema | {"description": self.description}

    def query_parameter(self, context: SchemaContext) -> dict[str, Any]:
        """Returns the OpenAPI parameter of a field that is in the query instead of the body."""
        return {
            "name": self.name,
            "in": "query",
            "description": self.description,
            "schema": self._value_schema(context),
        }

    def _value_schema(self, context: SchemaContext) -> Schema:
        """Returns the schema of a value that is not null."""
        return {}

    def alternatives(self, context: SchemaContext) -> tuple[str, ...]:
        """Returns the names of the fields of which a request has exactly one, with this one."""
        return (self.exclusive_with,) if self.exclusive_with else ()

    def example(self) -> Any:
        """Returns a valid value for the documentation."""
        return _EXAMPLE_TEXT


@dataclass(frozen=True, slots=True)
class StringField(Field):
    """A string."""

    def __call__(self, body: Body) -> str | None:
        """Returns the value, or None where it is absent."""
        return _typed_value(body, self.name, str, "a string")

    def _value_schema(self, context: SchemaContext) -> Schema:
        return STRING


@dataclass(frozen=True, slots=True)
class TextField(StringField):
    """A text to embed or tokenize."""

    def _value_schema(self, context: SchemaContext) -> Schema:
        return _text_schema(context)


@dataclass(frozen=True, slots=True)
class ModelField(StringField):
    """The name of a model."""

    wildcard_names: tuple[str, ...] = ()  #: names that select any model

    def __call__(self, body: Body) -> str | None:
        """Returns the model's name, or None for any model."""
        value = _typed_value(body, self.name, str, "a string")
        return None if value in self.wildcard_names else value

    def _value_schema(self, context: SchemaContext) -> Schema:
        return enum((*context.model_names, *self.wildcard_names))


@dataclass(frozen=True, slots=True)
class BoolField(Field):
    """A boolean."""

    def __call__(self, body: Body) -> bool | None:
        """Returns the value, or None where it is absent."""
        return _typed_value(body, self.name, bool, "true or false")

    def _value_schema(self, context: SchemaContext) -> Schema:
        return BOOLEAN


@dataclass(frozen=True, slots=True)
class IntField(Field):
    """An integer within bounds, both inclusive."""

    minimum: int = -(2**31)
    maximum: int = _INT32_MAX

    def __call__(self, body: Body) -> int | None:
        """Returns the value, or None where it is absent."""
        value = _typed_value(body, self.name, int, "an integer")
        if value is None or self.minimum <= value <= self.maximum:
            return value
        bounds = f"between {self.minimum} and {self.maximum}"
        if value < self.minimum and self.maximum == _INT32_MAX:
            bounds = f"at least {self.minimum}"
        raise InvalidRequest(f"`{self.name}` must be {bounds}; it was {value}.", self.name)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return INTEGER | {"minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class DimensionsField(Field):
    """The number of dimensions of each returned vector."""

    allow_zero: bool = False  #: whether 0 selects all dimensions

    def __call__(self, body: Body) -> int | None:
        """Returns the value, or None for all dimensions. The service checks the model's bound."""
        value = _typed_value(body, self.name, int, "an integer")
        return None if self.allow_zero and value == 0 else value

    def _value_schema(self, context: SchemaContext) -> Schema:
        return INTEGER | {"minimum": 0 if self.allow_zero else 1, "maximum": context.spec.dim}


@dataclass(frozen=True, slots=True)
class EnumField(Field):
    """One of a fixed set of strings."""

    choices: tuple[str, ...] = ()

    def __call__(self, body: Body) -> str | None:
        """Returns the value, or None where it is absent."""
        return _enum_value(body.get(self.name), self.name, self.choices)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return enum(self.choices)

    def example(self) -> Any:
        """Returns the first choice."""
        return self.choices[0]


@dataclass(frozen=True, slots=True)
class EnumListField(Field):
    """A list of strings from a fixed set."""

    choices: tuple[str, ...] = ()

    def __call__(self, body: Body) -> tuple[str, ...]:
        """Returns the values; empty where the field is absent."""
        values = _typed_value(body, self.name, list, "a list of strings") or ()
        if None in values:
            raise InvalidRequest(f"Each of `{self.name}` must be a string.", self.name)
        return tuple(str(_enum_value(value, self.name, self.choices)) for value in values)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return array(enum(self.choices))


@dataclass(frozen=True, slots=True)
class TextsField(Field):
    """One text or a list of texts; in some dialects also token ids."""

    allow_token_ids: bool = False  #: whether a list of token ids may replace each text
    allow_single: bool = True  #: whether one text may come without a list around it
    allow_blank: bool = True  #: whether a text may be only whitespace
    allow_empty_items: bool = False  #: whether a list may hold empty texts among others
    reserved: int = 0  #: texts that the request has in other fields, within the same limit
    is_split: bool = False  #: whether the service computes the texts in parts

    def __call__(self, body: Body) -> tuple[Input, ...]:
        """Returns the inputs. The service validates each of them."""
        value = body.get(self.name)
        if isinstance(value, str) and self.allow_single:
            return (value,)
        expected = "a string or a list of strings" if self.allow_single else "a list of strings"
        if value is None:
            raise InvalidRequest(f"`{self.name}` is missing. Send {expected}.", "texts")
        if not isinstance(value, list):
            type_name = type(value).__name__
            raise InvalidRequest(f"`{self.name}` must be {expected}, not {type_name}.", "texts")
        if not self.allow_token_ids:
            return tuple(value)
        if value and all(_is_token_id(item) for item in value):
            return (tuple(value),)
        return tuple(_token_ids_to_tuple(item) for item in value)

    def _value_schema(self, context: SchemaContext) -> Schema:
        text = _text_schema(context, allow_blank=self.allow_blank)
        token_ids = _token_ids_schema(context)
        item = any_of(text, token_ids) if self.allow_token_ids else text
        limit = context.settings.max_texts(is_split=self.is_split) - self.reserved
        texts = array(item, minItems=1, maxItems=limit)
        if self.allow_empty_items:
            texts |= {"items": {**text, "minLength": 0}, "contains": {"minLength": 1}}
        schemas = [texts]
        if self.allow_single:
            schemas.append(text)
        if self.allow_token_ids:
            schemas.append(token_ids)
        return any_of(*schemas)

    def example(self) -> Any:
        """Returns two texts."""
        return [_EXAMPLE_TEXT, "Good morning"]


@dataclass(frozen=True, slots=True)
class TokenIdsField(Field):
    """The token ids of one text, or with `many` also a list of such lists."""

    many: bool = True

    def __call__(self, body: Body) -> tuple[tuple[int, ...], ...]:
        """Returns the token ids of each text."""
        value = _typed_value(body, self.name, list, "a list of token ids")
        if value is None:
            raise InvalidRequest(f"`{self.name}` is missing. Send token ids.", self.name)
        if not value:
            raise EmptyInput(f"`{self.name}` is empty. Send at least one token id.", self.name)
        if all(_is_token_id(item) for item in value):
            return (tuple(value),)
        rows = tuple(_token_ids_to_tuple(item) for item in value)
        if not self.many or not all(isinstance(row, tuple) for row in rows):
            raise InvalidRequest(f"`{self.name}` must hold token ids.", self.name)
        return rows

    def _value_schema(self, context: SchemaContext) -> Schema:
        row = _token_ids_schema(context)
        if not self.many:
            return row
        return any_of(row, array(row, minItems=1, maxItems=context.settings.max_texts_per_request))

    def example(self) -> Any:
        """Returns token ids that are valid in most vocabularies."""
        return [7592, 2088]


@dataclass(frozen=True, slots=True)
class ObjectField(Field):
    """A nested object, or with `many` a list of such objects."""

    fields: tuple[Field, ...] = ()
    many: bool = False
    count_as_texts: bool = False  #: whether `max_texts_per_request` limits the list

    def __call__(self, body: Body) -> Any:
        """Returns the value, or None where it is absent. The nested fields parse its items."""
        if not self.many:
            return _typed_value(body, self.name, dict, "an object")
        value = _typed_value(body, self.name, list, "a list of objects")
        if value is not None and not all(isinstance(item, dict) for item in value):
            raise InvalidRequest(f"Each of `{self.name}` must be an object.", self.name)
        return value

    def _value_schema(self, context: SchemaContext) -> Schema:
        item = object_schema(self.fields, context)
        if not self.many:
            return item
        limit = context.settings.max_texts_per_request
        return array(item, minItems=1, **({"maxItems": limit} if self.count_as_texts else {}))

    def example(self) -> Any:
        """Returns an object with only the required fields, in a list with `many`."""
        item = object_example(self.fields)
        return [item] if self.many else item


def object_example(fields: Sequence[Field]) -> dict[str, Any]:
    """Returns an object with an example value for each required field."""
    return {
        field.name: field.example() for field in fields if field.required or field.exclusive_with
    }


def object_schema(fields: Sequence[Field], context: SchemaContext) -> Schema:
    """Returns the schema of an object with these fields."""
    properties = {field.name: field.schema(context) for field in fields}
    schema = object_(properties, optional=[field.name for field in fields if not field.required])
    choices = [
        exactly_one(field.name, *field.alternatives(context))
        for field in fields
        if field.exclusive_with
    ]
    return schema | {"allOf": choices} if choices else schema


def _typed_value(body: Body, name: str, type_: type[T], expected: str) -> T | None:
    """Returns a field's value, or None where it is absent or null.

    Raises:
        InvalidRequest: the value has another type. Unlike in Python, a boolean is not an integer.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, type_) and (type_ is bool) == isinstance(value, bool):
        return value
    raise InvalidRequest(f"`{name}` must be {expected}, not {type(value).__name__}.", name)


def _enum_value(value: Any, name: str, choices: Sequence[str]) -> str | None:
    """Returns a field's value, or None where it is absent or null.

    Raises:
        InvalidRequest: the value is not among the choices.
    """
    if value is None or value in choices:
        return None if value is None else str(value)
    listing = ", ".join(map(repr, choices))
    raise InvalidRequest(f"`{name}` must be one of {listing}; it was {short_repr(value)}.", name)


def _text_schema(context: SchemaContext, *, allow_blank: bool = True) -> Schema:
    pattern = r"^[^\u0000]*$" if allow_blank else r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
    max_chars = context.settings.max_text_chars
    return {"type": "string", "minLength": 1, "maxLength": max_chars, "pattern": pattern}


def _token_ids_schema(context: SchemaContext) -> Schema:
    return array(TOKEN_ID, minItems=1, maxItems=context.settings.max_text_chars)


def _is_token_id(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _token_ids_to_tuple(item: Any) -> Any:
    """Returns a list of token ids as a tuple, and any other value unchanged."""
    if isinstance(item, list) and all(_is_token_id(token) for token in item):
        return tuple(item)
    return item
