"""The documents of a rerank request: strings, or objects that hold their texts as members."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.errors import EmptyInput, InvalidRequest, short_repr
from serve_app.web.schema.fields import Body, Field, SchemaContext, TextField, object_schema
from serve_app.web.schema.json_schema import STRING, Schema, any_of, array

_TEXT = "text"


@dataclass(frozen=True, slots=True)
class DocumentsField(Field):
    """A list of texts, or of objects that hold a text as `text` or in other members."""

    def __call__(self, body: Body, members: Sequence[str] = (_TEXT,)) -> tuple[str, ...]:
        """Returns the text of each document. The service validates each of them.

        Args:
            body: the request.
            members: the members of an object whose strings are its text, joined by line breaks.
                Those that an object doesn't have are left out.
        """
        value = body.get(self.name)
        if not isinstance(value, list):
            raise InvalidRequest(f"`{self.name}` must be a list of strings or objects.", self.name)
        if not value:
            raise EmptyInput(f"`{self.name}` is empty. Send at least one document.", self.name)
        return tuple(self._text(item, i, members or (_TEXT,)) for i, item in enumerate(value))

    def _text(self, item: Any, index: int, members: Sequence[str]) -> str:
        if isinstance(item, str):
            return item
        if not isinstance(item, dict):
            raise InvalidRequest(
                f"Document {index} must be a string or an object, not {type(item).__name__}.",
                self.name,
            )
        texts = [item[member] for member in members if item.get(member) is not None]
        if not texts or not all(isinstance(text, str) for text in texts):
            names = " or ".join(f"`{short_repr(member)[1:-1]}`" for member in members)
            raise InvalidRequest(f"Document {index} must have a string as {names}.", self.name)
        return "\n".join(texts)

    def _value_schema(self, context: SchemaContext) -> Schema:
        text = TextField(_TEXT, "A text.", required=True)
        item = any_of(text._value_schema(context), object_schema((text,), context))
        return array(item, minItems=1, maxItems=context.settings.max_texts_per_request)

    def example(self) -> Any:
        """Returns two texts."""
        return ["Paris is the capital of France.", "Bread needs flour."]


@dataclass(frozen=True, slots=True)
class MembersField(Field):
    """The names of the members of documents that are their text."""

    def __call__(self, body: Body) -> tuple[str, ...]:
        """Returns the names; empty where the field is absent."""
        value = body.get(self.name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise InvalidRequest(f"`{self.name}` must be a list of strings.", self.name)
        return tuple(value)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return array(STRING)
