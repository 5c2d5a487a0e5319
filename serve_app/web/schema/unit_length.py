"""`UnitLengthField`: whether vectors have unit length, where the model leaves the choice."""

from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.web.schema.fields import Body, BoolField, Field, SchemaContext
from serve_app.web.schema.json_schema import BOOLEAN, Schema


class UnitLengthField(Field):
    """A flag that must not be false if the model's pipeline normalizes its vectors."""

    __slots__ = ()

    def __call__(self, body: Body, spec: ModelSpec) -> bool | None:
        """Returns the value, or None where it is absent."""
        value = BoolField(self.name, self.description)(body)
        if value is False and spec.unit_length:
            raise InvalidRequest(
                f"`{self.name}` can't be false: the model itself returns vectors of unit length. "
                "Leave it out.",
                self.name,
            )
        return value

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {"const": True} if context.spec.unit_length else BOOLEAN
