"""The body of Cohere's `POST /v2/embed`: its fields, and the parse and render functions."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.inputs import Image, ImageUrl, RequestInput
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.types import Truncation
from serve_app.web.dialects.cohere_meta import META, Meta
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    IntField,
    ModelField,
    ObjectField,
    SchemaContext,
    TextField,
    TextsField,
)
from serve_app.web.schema.images import image_schema, parse_image, takes_images
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.json_schema import (
    INTEGER,
    STRING,
    VECTOR,
    Schema,
    any_of,
    array,
    enum,
    object_,
)
from serve_app.web.schema.vector_encoding import OUTPUT_TYPES, OutputTypesField, VectorEncoder

_INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
_IMAGE_INPUT_TYPE = "image"
_IMAGE_TYPE = "image_url"
_TRUNCATIONS: dict[str | None, Truncation] = {"NONE": "error", "START": "start"}


class _InputTypeField(InputTypeField):
    """The purpose of the texts; images have no other one than `image`."""

    __slots__ = ()

    def __call__(self, body: Body, spec: ModelSpec) -> str | None:
        if takes_images(spec) and body.get(self.name) == _IMAGE_INPUT_TYPE:
            return None
        return InputTypeField.__call__(self, body, spec)

    def _value_schema(self, context: SchemaContext) -> Schema:
        images = (_IMAGE_INPUT_TYPE,) if takes_images(context.spec) else ()
        return enum((*self.choices, *images))


class _TextsField(TextsField):
    """The texts, one of up to three fields for inputs."""

    __slots__ = ()

    def alternatives(self, context: SchemaContext) -> tuple[str, ...]:
        """Returns the names of the other fields."""
        images = (_IMAGES.name,) if takes_images(context.spec) else ()
        return (*TextsField.alternatives(self, context), *images)


class _ImagesField(Field):
    """A list of images as data URIs; empty for a model that takes texts only."""

    __slots__ = ()

    def parse(self, body: Body, spec: ModelSpec) -> tuple[Image | ImageUrl, ...]:
        """Returns the images; empty where the field is absent."""
        value = body.get(self.name)
        if value is None or (value == [] and not takes_images(spec)):
            return ()
        if not takes_images(spec):
            raise InvalidRequest(
                f"`{self.name}` must be empty. The model takes no images.", self.name
            )
        if not isinstance(value, list):
            raise InvalidRequest(f"`{self.name}` must be a list of data URIs.", self.name)
        if not value:
            raise EmptyInput(f"`{self.name}` is empty. Send at least one image.", self.name)
        return tuple(parse_image(item, self.name) for item in value)

    def _value_schema(self, context: SchemaContext) -> Schema:
        if not takes_images(context.spec):
            return {"type": "array", "maxItems": 0}
        return array(
            image_schema(context), minItems=1, maxItems=context.settings.max_texts_per_request
        )


class _PartsField(ObjectField):
    """The parts of an input: texts, or an image where the model takes some."""

    __slots__ = ()

    def _value_schema(self, context: SchemaContext) -> Schema:
        texts = ObjectField._value_schema(self, context)
        if not takes_images(context.spec):
            return texts
        url = object_({"url": image_schema(context)})
        image = object_({"type": enum((_IMAGE_TYPE,)), "image_url": url})
        return any_of(texts, array(image, minItems=1, maxItems=1))


_MODEL = ModelField("model", "Name or alias of the served model.")
_INPUT_TYPE = _InputTypeField(
    "input_type",
    "Purpose of the texts; selects the model's prompt.",
    required=True,
    choices=_INPUT_TYPES,
)
_TEXTS = _TextsField(
    "texts", "The texts, unless `inputs` has them.", allow_single=False, exclusive_with="inputs"
)
_TEXT_TYPE = EnumField("type", "`text`.", choices=("text",))
_TYPE = EnumField("type", "`text` or `image_url`.", choices=("text", _IMAGE_TYPE))
_PART_TEXT = TextField("text", "The text of the part.", required=True)
_PARTS = _PartsField(
    "content", "The parts of the text.", required=True, fields=(_TEXT_TYPE, _PART_TEXT), many=True
)
_IMAGE_URL = ObjectField("image_url", "An image: the data URI is in its member `url`.")
_INPUTS = ObjectField(
    "inputs",
    "Texts as lists of parts, instead of `texts`. Parts are joined by line breaks.",
    fields=(_PARTS,),
    many=True,
    count_as_texts=True,
)
_IMAGES = _ImagesField("images", "Images as data URIs, instead of `texts`.")
_DIMENSIONS = DimensionsField(
    "output_dimension", "Number of leading components to return, normalized to unit length."
)
_EMBEDDING_TYPES = OutputTypesField(
    "embedding_types", "Types of the components to return; `float` by default."
)
_TRUNCATE = EnumField(
    "truncate",
    "The end at which texts over the token limit are truncated; with NONE they are errors.",
    choices=("NONE", "START", "END"),
)
_MAX_TOKENS = IntField(
    "max_tokens", "Number of tokens to truncate each text to, as `truncate` says.", minimum=1
)
PRIORITY = IntField(
    "priority", "Values above 0 put the request into the bulk lane.", minimum=0, maximum=999
)
FIELDS = (
    _MODEL,
    _INPUT_TYPE,
    _TEXTS,
    _INPUTS,
    _IMAGES,
    _DIMENSIONS,
    _EMBEDDING_TYPES,
    _TRUNCATE,
    _MAX_TOKENS,
    PRIORITY,
    CHUNK,
    USE_CACHE,
)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v2/embed`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value, or the body
            holds images.
    """
    if body.get("input_type") is None:
        raise InvalidRequest(f"`input_type` is missing: one of {', '.join(_INPUT_TYPES)}.")
    output_types = _EMBEDDING_TYPES(body) or ("float",)
    encoders = {output_type: VectorEncoder(spec, output_type) for output_type in output_types}
    inputs = _read_inputs(body, spec)
    truncation, chunk = _TRUNCATIONS.get(_TRUNCATE(body), "end"), CHUNK(body)
    max_tokens = _MAX_TOKENS(body)
    job = EmbedJob(
        inputs,
        input_type=_INPUT_TYPE(body, spec),
        dimensions=_DIMENSIONS(body),
        lane="bulk" if PRIORITY(body) else None,
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
        max_tokens=None if max_tokens is None else min(max_tokens, spec.max_tokens),
    )
    has_floats = any(encoder.is_float for encoder in encoders.values())
    render = partial(_render, encoders=encoders, inputs=inputs)
    return ParsedRequest(job, render, has_floats=has_floats)


def has_images(body: Body) -> bool:
    """Returns whether a body holds images, or says that it does."""
    return bool(body.get(_IMAGES.name)) or body.get(_INPUT_TYPE.name) == _IMAGE_INPUT_TYPE


def _read_inputs(body: Body, spec: ModelSpec) -> tuple[RequestInput, ...]:
    images, inputs = _IMAGES.parse(body, spec), _INPUTS(body)
    if inputs is None and not images:
        return _TEXTS(body)
    if body.get(_TEXTS.name) is not None:
        name = "images" if images else "inputs"
        raise InvalidRequest(f"Send one of `texts` and `{name}`, not both.", "texts")
    if inputs is None:
        return images
    if images:
        raise InvalidRequest("Send one of `images` and `inputs`, not both.", "images")
    return tuple(_input(item, spec) for item in inputs)


def _input(item: Body, spec: ModelSpec) -> RequestInput:
    """Returns the text, or the image, of `{"content": [{"type": "text", "text": …}, …]}`."""
    parts = _PARTS(item)
    if parts is None:
        raise InvalidRequest("Each of `inputs` must be an object with a list `content`.", "inputs")
    if not takes_images(spec):
        return "\n".join(_text_of_part(part) for part in parts)
    images = [_image_of_part(part) for part in parts if _TYPE(part) == _IMAGE_TYPE]
    if not images:
        return "\n".join(_text_of_part(part) for part in parts)
    if len(parts) > 1:
        raise InvalidRequest(
            "The model embeds a text or an image, not both together. Send `content` with the "
            "image alone.",
            "inputs",
        )
    return images[0]


def _image_of_part(part: Body) -> Image | ImageUrl:
    return parse_image((_IMAGE_URL(part) or {}).get("url"), "inputs")


def _text_of_part(part: Body) -> str:
    _TEXT_TYPE(part)
    text = _PART_TEXT(part)
    if not text:
        raise EmptyInput("A part of `content` has no text. The model takes nothing else.", "inputs")
    return text


class BilledUnits(TypedDict):
    """What the request is billed for."""

    input_tokens: int
    images: NotRequired[int]


class EmbedMeta(Meta):
    """`Meta` with the tokens of the request."""

    billed_units: BilledUnits
    cached_tokens: int


#: Vectors by output type. Only the requested types are present.
_EMBEDDINGS: Schema = {
    "type": "object",
    "properties": {
        "float": array(VECTOR),
        "base64": array(STRING),
        **{name: array(array(INTEGER)) for name in OUTPUT_TYPES if name != "float"},
    },
    "additionalProperties": False,
}


class EmbedReply(TypedDict):
    """The reply of `POST /v2/embed`."""

    id: str
    embeddings: Annotated[Mapping[str, Sequence[Any]], _EMBEDDINGS]
    texts: list[str]
    meta: EmbedMeta
    response_type: Literal["embeddings_by_type"]


def _render(
    result: EmbedResult, *, encoders: Mapping[str, VectorEncoder], inputs: Sequence[RequestInput]
) -> bytes:
    texts = [value for value in inputs if isinstance(value, str)]
    billed_units: BilledUnits = {"input_tokens": result.total_tokens}
    if len(texts) < len(inputs):
        billed_units["images"] = len(inputs) - len(texts)
    reply: EmbedReply = {
        "id": str(uuid4()),
        "embeddings": {name: encoder(result) for name, encoder in encoders.items()},
        "texts": texts,
        "meta": {
            **META,
            "billed_units": billed_units,
            "cached_tokens": result.cached_tokens,
        },
        "response_type": "embeddings_by_type",
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
