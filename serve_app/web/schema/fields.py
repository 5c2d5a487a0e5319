"""The kinds of fields that requests have: each reads its value, and knows its schema.

A dialect says once what fields its routes take; requests are read by that, and documented by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from embedserve_client.model_files import ROLES
from serve_app.config import IngressSettings
from serve_app.errors import EmptyInput, InvalidRequest, short_repr
from serve_app.models import ModelSpec
from serve_app.types import Input
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    STRING,
    TOKEN,
    Schema,
    any_of,
    array,
    enum,
    exactly_one,
    nullable,
    object_,
)

Body = Mapping[str, Any]

_MOST = 2**31 - 1
_GREETING = "Hello, world"
#: Other purposes, for which most models have no prompt of their own.
_PURPOSES = ("classification", "clustering", "text-matching", "separation")


class Scope(NamedTuple):
    """What the schemas of a service depend on."""

    spec: ModelSpec
    settings: IngressSettings


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request's body. null stands for an absent one, unless it is required."""

    name: str
    description: str
    required: bool = False
    exclusive_with: str | None = None  #: another field, and a request has just one of the two

    def schema(self, scope: Scope) -> Schema:
        """Of its value."""
        schema = self._kind(scope) if self.required else nullable(self._kind(scope))
        return {**schema, "description": self.description}

    def _kind(self, scope: Scope) -> Schema:
        """Of a value that isn't null."""
        return {}

    def sample(self) -> Any:
        """A value to show."""
        return _GREETING


@dataclass(frozen=True, slots=True)
class StringField(Field):
    """A string."""

    def __call__(self, body: Body) -> str | None:
        """Its value, or None."""
        value: str | None = _optional(body, self.name, str, "a string")
        return value

    def _kind(self, scope: Scope) -> Schema:
        return STRING


@dataclass(frozen=True, slots=True)
class TextField(StringField):
    """A string that is to be embedded or spelled."""

    def _kind(self, scope: Scope) -> Schema:
        return _content(scope)


@dataclass(frozen=True, slots=True)
class ModelField(StringField):
    """A model's name."""

    wildcard_names: tuple[str, ...] = ()  #: names that stand for no model in particular

    def __call__(self, body: Body) -> str | None:
        """Its value; None: any model."""
        value: str | None = _optional(body, self.name, str, "a string")
        return None if value in self.wildcard_names else value

    def _kind(self, scope: Scope) -> Schema:
        return enum((scope.spec.name, *scope.spec.aliases, *self.wildcard_names))


@dataclass(frozen=True, slots=True)
class BoolField(Field):
    """true or false."""

    def __call__(self, body: Body) -> bool | None:
        """Its value, or None."""
        value: bool | None = _optional(body, self.name, bool, "true or false")
        return value

    def _kind(self, scope: Scope) -> Schema:
        return BOOLEAN


@dataclass(frozen=True, slots=True)
class IntField(Field):
    """An integer."""

    minimum: int = -(2**31)
    maximum: int = _MOST

    def __call__(self, body: Body) -> int | None:
        """Its value, or None."""
        value: int | None = _optional(body, self.name, int, "an integer")
        if value is None or self.minimum <= value <= self.maximum:
            return value
        bounds = f"between {self.minimum} and {self.maximum}"
        if value < self.minimum and self.maximum == _MOST:
            bounds = f"at least {self.minimum}"
        raise InvalidRequest(f"`{self.name}` must be {bounds}; it was {value}.", self.name)

    def _kind(self, scope: Scope) -> Schema:
        return INTEGER | {"minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class DimensionsField(Field):
    """How many components of the vector are wanted."""

    zero: bool = False  #: whether 0 stands for all of them

    def __call__(self, body: Body) -> int | None:
        """Its value, or None; whether the model has as many is not decided here."""
        value: int | None = _optional(body, self.name, int, "an integer")
        return None if self.zero and value == 0 else value

    def _kind(self, scope: Scope) -> Schema:
        return INTEGER | {"minimum": 0 if self.zero else 1, "maximum": scope.spec.dim}


@dataclass(frozen=True, slots=True)
class EnumField(Field):
    """One of some words."""

    choices: tuple[str, ...] = ()

    def __call__(self, body: Body) -> str | None:
        """Its value, or None."""
        return one_of(body.get(self.name), self.name, self.choices)

    def _kind(self, scope: Scope) -> Schema:
        return enum(self.choices)

    def sample(self) -> Any:
        """The first."""
        return self.choices[0]


@dataclass(frozen=True, slots=True)
class EnumListField(Field):
    """A list of some words."""

    choices: tuple[str, ...] = ()

    def __call__(self, body: Body) -> tuple[str, ...]:
        """Its value; empty: none was given."""
        given = _optional(body, self.name, list, "a list of strings") or ()
        if None in given:
            raise InvalidRequest(f"Each of `{self.name}` must be a string.", self.name)
        return tuple(str(one_of(word, self.name, self.choices)) for word in given)

    def _kind(self, scope: Scope) -> Schema:
        return array(enum(self.choices))


@dataclass(frozen=True, slots=True)
class InputTypeField(Field):
    """What a text is for, in a dialect's words or the model's own."""

    allowed: tuple[str, ...] = ()  #: the dialect's words; empty: any that a model may know

    def __call__(self, body: Body, spec: ModelSpec) -> str | None:
        """The model's own name for it, or None: its default."""
        if self.allowed:
            asked = one_of(body.get(self.name), self.name, self.allowed)
        else:
            asked = _optional(body, self.name, str, "a string")
        return input_type(asked, spec)

    def _kind(self, scope: Scope) -> Schema:
        known = {*(name for names in ROLES for name in names), *_PURPOSES, *scope.spec.prompts}
        return enum(self.allowed or sorted(known))

    def sample(self) -> Any:
        """The dialect's first."""
        return self.allowed[0]


@dataclass(frozen=True, slots=True)
class TextsField(Field):
    """One text, or a list of them; where the dialect has token ids, these in their place."""

    allow_token_ids: bool = False
    allow_single: bool = True  #: whether one text may come without a list around it
    allow_blank: bool = True  #: whether a text may be nothing but white space
    allow_empty_items: bool = False  #: whether there may be empty ones among others
    reserved: int = 0  #: how many texts a request has beside these

    def __call__(self, body: Body) -> tuple[Input, ...]:
        """Its texts. Whether they can be embedded is not decided here."""
        given = body.get(self.name)
        if isinstance(given, str) and self.allow_single:
            return (given,)
        what = "a string or a list of strings" if self.allow_single else "a list of strings"
        if given is None:
            raise InvalidRequest(f"`{self.name}` is missing. Send {what}.", "texts")
        if not isinstance(given, list):
            kind = type(given).__name__
            raise InvalidRequest(f"`{self.name}` must be {what}, not {kind}.", "texts")
        if not self.allow_token_ids:
            return tuple(given)
        if given and all(_is_token(item) for item in given):
            return (tuple(given),)
        return tuple(_as_ids(item) if isinstance(item, list) else item for item in given)

    def _kind(self, scope: Scope) -> Schema:
        text, row = _content(scope, allow_blank=self.allow_blank), _row(scope)
        item = any_of(text, row) if self.allow_token_ids else text
        texts = array(item, minItems=1, maxItems=_most(scope) - self.reserved)
        if self.allow_empty_items:
            texts |= {"items": {**text, "minLength": 0}, "contains": {"minLength": 1}}
        schemas = [texts]
        if self.allow_single:
            schemas.append(text)
        if self.allow_token_ids:
            schemas.append(row)
        return any_of(*schemas)

    def sample(self) -> Any:
        """Some texts."""
        return [_GREETING, "Good morning"]


@dataclass(frozen=True, slots=True)
class TokenIdsField(Field):
    """A list of token ids, or with `many` also a list of such lists."""

    many: bool = True

    def __call__(self, body: Body) -> tuple[tuple[int, ...], ...]:
        """Its rows."""
        given = _optional(body, self.name, list, "a list of token ids")
        if given is None:
            raise InvalidRequest(f"`{self.name}` is missing. Send token ids.", self.name)
        if not given:
            raise EmptyInput(f"`{self.name}` is empty. Send at least one token id.", self.name)
        if all(_is_token(item) for item in given):
            return (tuple(given),)
        rows = tuple(_as_ids(item) for item in given)
        if not self.many or not all(isinstance(row, tuple) for row in rows):
            raise InvalidRequest(f"`{self.name}` must hold token ids.", self.name)
        return rows

    def _kind(self, scope: Scope) -> Schema:
        row = _row(scope)
        return any_of(row, array(row, minItems=1, maxItems=_most(scope))) if self.many else row

    def sample(self) -> Any:
        """One that most vocabularies have."""
        return [7592, 2088]


@dataclass(frozen=True, slots=True)
class ObjectField(Field):
    """An object with fields of its own, or with `many` a list of them."""

    fields: tuple[Field, ...] = ()
    many: bool = False
    texts: bool = False  #: whether each of them counts as a text of the request

    def __call__(self, body: Body) -> Any:
        """Its value, or None."""
        if not self.many:
            return _optional(body, self.name, dict, "an object")
        given = _optional(body, self.name, list, "a list of objects")
        if given is not None and not all(isinstance(item, dict) for item in given):
            raise InvalidRequest(f"Each of `{self.name}` must be an object.", self.name)
        return given

    def _kind(self, scope: Scope) -> Schema:
        item = record(self.fields, scope)
        bounds = {"maxItems": _most(scope)} if self.texts else {}
        return array(item, minItems=1, **bounds) if self.many else item

    def sample(self) -> Any:
        """With what it must have."""
        item = sample(self.fields)
        return [item] if self.many else item


def sample(fields: Sequence[Field]) -> dict[str, Any]:
    """An object with the fields that it must have."""
    return {
        field.name: field.sample() for field in fields if field.required or field.exclusive_with
    }


def record(fields: Sequence[Field], scope: Scope) -> Schema:
    """The schema of an object with such fields."""
    schemas = {field.name: field.schema(scope) for field in fields}
    schema = object_(schemas, optional=[field.name for field in fields if not field.required])
    for field in fields:
        if field.exclusive_with:
            schema |= exactly_one(field.name, field.exclusive_with)
    return schema


def one_of(value: Any, name: str, choices: Sequence[str]) -> str | None:
    """A field's value that is one of some words, or null.

    Raises:
        InvalidRequest: it is something else.
    """
    if value is not None and value not in choices:
        listing = ", ".join(map(repr, choices))
        raise InvalidRequest(
            f"`{name}` must be one of {listing}; it was {short_repr(value)}.", name
        )
    word: str | None = value
    return word


def input_type(asked: str | None, spec: ModelSpec) -> str | None:
    """The model's own name for what a text is for; None: its default.

    A model without prompts is asked for queries and documents alike. A name that no dialect knows
    is given back as it is: the model may know it, or refuses it and lists what it knows.
    """
    if asked is None or asked in spec.prompts:
        return asked
    for names in ROLES:
        if asked in names:
            return next((name for name in names if name in spec.prompts), None)
    return None if asked in _PURPOSES else asked


def _optional(body: Body, name: str, kind: type, what: str) -> Any:
    """A field's value; None where it is absent or null.

    Raises:
        InvalidRequest: it is of another kind.
    """
    value = body.get(name)
    if value is None or (isinstance(value, kind) and (kind is bool) == isinstance(value, bool)):
        return value
    raise InvalidRequest(f"`{name}` must be {what}, not {type(value).__name__}.", name)


def _content(scope: Scope, *, allow_blank: bool = True) -> Schema:
    pattern = r"^[^\u0000]*$" if allow_blank else r"^[^\u0000]*[^\s\u0000][^\u0000]*$"
    longest = scope.settings.max_text_chars
    return {"type": "string", "minLength": 1, "maxLength": longest, "pattern": pattern}


def _row(scope: Scope) -> Schema:
    return array(TOKEN, minItems=1, maxItems=scope.settings.max_text_chars)


def _most(scope: Scope) -> int:
    return scope.settings.max_texts_per_request


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _as_ids(item: Any) -> Any:
    """A list of token ids as a tuple of them; anything else as it is."""
    if isinstance(item, list) and all(_is_token(token) for token in item):
        return tuple(item)
    return item
