"""The inputs of `POST /v1/embeddings`: texts, token ids, and images in Jina's and NIM's formats."""

from collections.abc import Sequence
from typing import Any

from serve_app.errors import InvalidRequest, UnsupportedOperation, short_repr
from serve_app.inputs import RequestInput
from serve_app.models import ModelSpec
from serve_app.web.schema.fields import (
    Body,
    Field,
    SchemaContext,
    TextField,
    TextsField,
    object_schema,
)
from serve_app.web.schema.images import image_schema, parse_image, takes_images
from serve_app.web.schema.json_schema import Schema, any_of, array, enum, object_

_OBJECT_TEXT = TextField("text", "A text.", required=True)
_IMAGE_MEMBER = "image"


class InputField(TextsField):
    """Texts or token ids; an item of a list may be an object with a text or an image (Jina)."""

    __slots__ = ()

    def parse(self, body: Body, spec: ModelSpec) -> tuple[RequestInput, ...]:
        """Returns the inputs. The service validates each of them.

        Raises:
            InvalidRequest: an input has a wrong type.
            UnsupportedOperation: an input is an image, and the model takes texts only.
        """
        value = body.get(self.name)
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list):
            types = set(map(type, value))
            if types == {str}:
                return tuple(value)
            if dict in types:
                inputs = [_input_of_item(item, i, spec) for i, item in enumerate(value)]
                return self({self.name: inputs})
        return self(body)

    def _value_schema(self, context: SchemaContext) -> Schema:
        schema = TextsField._value_schema(self, context)
        item = schema["anyOf"][0]["items"]
        objects = [object_schema((_OBJECT_TEXT,), context)]
        if takes_images(context.spec):
            objects.append(object_({_IMAGE_MEMBER: image_schema(context, allow_base64=True)}))
        item["anyOf"] += [object_ | {"additionalProperties": False} for object_ in objects]
        return schema


def _input_of_item(item: Any, index: int, spec: ModelSpec) -> Any:
    """Returns the input of `{"text": …}` or `{"image": …}`, and another item unchanged."""
    if not isinstance(item, dict):
        return item
    if takes_images(spec) and item.keys() == {_IMAGE_MEMBER}:
        return parse_image(item[_IMAGE_MEMBER], "input", allow_base64=True)
    for member in item:
        if member == "text":
            continue
        if takes_images(spec):
            raise InvalidRequest(
                f"Input {index} must be an object with either `text` or `image` alone.", "input"
            )
        raise UnsupportedOperation(
            f"Input {index} has the member {short_repr(member)}. The model embeds texts only: "
            "send an object with `text` alone.",
            "input",
        )
    if not isinstance(item.get("text"), str):
        raise InvalidRequest(f"Input {index} must have a string as its `text`.", "input")
    return item["text"]


def has_images(body: Body) -> bool:
    """Returns whether a body of Jina's or NIM's formats holds images."""
    value, modality = body.get("input"), body.get("modality")
    if modality == "image" or (isinstance(modality, list) and "image" in modality):
        return True
    items = value if isinstance(value, list) else []
    return any(isinstance(item, dict) and _IMAGE_MEMBER in item for item in items)


class ModalityField(Field):
    """The modality of all inputs, or a list with the modality of each."""

    __slots__ = ()

    def parse(
        self, body: Body, spec: ModelSpec, inputs: Sequence[RequestInput]
    ) -> tuple[RequestInput, ...]:
        """Returns the inputs, with images in place of data URIs of the modality `image`.

        Raises:
            UnsupportedOperation: the model doesn't support a modality.
            InvalidRequest: an input of the modality `image` is not an image.
        """
        value = body.get(self.name)
        values = value if isinstance(value, list) else [value] * len(inputs)
        if value is not None and any(item != "text" for item in values):
            if not takes_images(spec):
                raise UnsupportedOperation(
                    f"`{self.name}` must be 'text': the model embeds texts only.", self.name
                )
            if len(values) != len(inputs) or any(item not in ("text", "image") for item in values):
                raise InvalidRequest(
                    f"`{self.name}` must be 'text' or 'image', or a list with one of them for "
                    "each input.",
                    self.name,
                )
            return tuple(
                parse_image(item, "input") if modality == "image" else item
                for item, modality in zip(inputs, values, strict=True)
            )
        return tuple(inputs)

    def _value_schema(self, context: SchemaContext) -> Schema:
        modality = enum(("text", "image") if takes_images(context.spec) else ("text",))
        return any_of(modality, array(modality))
