"""The purpose of texts, which selects one of the model's prompts."""

from dataclasses import dataclass
from typing import Any

from embedserve_client.model_files import INPUT_TYPE_ALIASES
from serve_app.models import ModelSpec
from serve_app.web.schema.fields import Body, EnumField, Field, SchemaContext, StringField
from serve_app.web.schema.json_schema import Schema, enum

#: Input types of dialects for which a model without such a prompt uses its default prompt.
_OPTIONAL_INPUT_TYPES = ("classification", "clustering", "text-matching", "separation")


@dataclass(frozen=True, slots=True)
class InputTypeField(Field):
    """The purpose of the texts, which selects one of the model's prompts."""

    choices: tuple[str, ...] = ()  #: the dialect's own names; empty: any name of any dialect

    def __call__(self, body: Body, spec: ModelSpec) -> str | None:
        """Returns the name of the model's prompt, or None for its default."""
        if self.choices:
            name = EnumField(self.name, "", choices=self.choices)(body)
        else:
            name = StringField(self.name, "")(body)
        return resolve_input_type(name, spec)

    def _value_schema(self, context: SchemaContext) -> Schema:
        role_names = (name for names in INPUT_TYPE_ALIASES for name in names)
        known = {*role_names, *_OPTIONAL_INPUT_TYPES, *context.spec.prompts}
        return enum(self.choices or sorted(known))

    def example(self) -> Any:
        """Returns the first choice."""
        return self.choices[0]


def resolve_input_type(name: str | None, spec: ModelSpec) -> str | None:
    """Returns the name of the model's prompt for an input type; None selects the default prompt.

    Args:
        name: the model's own name, or the name that a dialect gives to a query or a document.
        spec: the model. Without prompts, it embeds queries and documents alike.

    Returns:
        `name` itself where no dialect defines it: the service rejects it if the model has no such
        prompt, and lists the names that the model has.
    """
    if name is None or name in spec.prompts:
        return name
    for names in INPUT_TYPE_ALIASES:
        if name in names:
            return next((synonym for synonym in names if synonym in spec.prompts), None)
    return None if name in _OPTIONAL_INPUT_TYPES else name
