"""Token limits that a request may set, but not below the model's own."""

from dataclasses import dataclass

from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.web.schema.fields import Body, IntField, SchemaContext
from serve_app.web.schema.json_schema import INTEGER, Schema, any_of


@dataclass(frozen=True, slots=True)
class TokenLimitField(IntField):
    """A token limit that has no effect: texts are truncated at the model's, which is not above.

    A lower limit is an error, because it would change the scores.
    """

    minimum: int = 1  #: -1: the value -1 stands for the model's limit

    def check(self, body: Body, spec: ModelSpec) -> None:
        """Checks the limit.

        Raises:
            InvalidRequest: it is not an integer, or below the model's.
        """
        value = self(body)
        if value is None or value == -1 or value >= spec.max_tokens:
            return
        raise InvalidRequest(
            f"`{self.name}` must be at least {spec.max_tokens}, the model's token limit; it was "
            f"{value}. Leave it out: texts are truncated at the model's limit.",
            self.name,
        )

    def _value_schema(self, context: SchemaContext) -> Schema:
        schema = INTEGER | {"minimum": context.spec.max_tokens, "maximum": self.maximum}
        return any_of(schema, {"const": -1}) if self.minimum < 0 else schema
