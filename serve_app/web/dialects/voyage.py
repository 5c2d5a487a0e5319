"""Voyage's `POST /v1/multimodalembeddings`: texts and images as lists of parts.

Voyage's fields of `/v1/embeddings` are read by the OpenAI dialect, those of `/v1/rerank` by
`rerank`.
"""

from functools import partial
from typing import Literal, TypedDict

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest, UnsupportedOperation
from serve_app.inputs import Image, RequestInput
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.images import pixel_count
from serve_app.types import Truncation
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import openai_requests
from serve_app.web.dialects.extensions import CHUNK, MODEL, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    DimensionsField,
    EnumField,
    ObjectField,
    SchemaContext,
    TextField,
)
from serve_app.web.schema.images import image_schema, parse_image, takes_images
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.json_schema import Schema, any_of, array, enum, object_
from serve_app.web.schema.typed_dict import schema_of
from serve_app.web.schema.vector_encoding import OutputTypeField, VectorEncoder

#: The types of parts with an image, which is in a member of the same name.
_IMAGE_TYPES = ("image_base64", "image_url")


class _PartsField(ObjectField):
    """The parts of an input: texts, or an image where the model takes some."""

    __slots__ = ()

    def _value_schema(self, context: SchemaContext) -> Schema:
        parts = ObjectField._value_schema(self, context)
        if not takes_images(context.spec):
            return parts
        image = image_schema(context)
        images = [object_({"type": enum((name,)), name: image}) for name in _IMAGE_TYPES]
        return any_of(parts, array(any_of(*images), minItems=1, maxItems=1))


_TEXT_TYPE = EnumField("type", "`text`.", required=True, choices=("text",))
_TYPE = EnumField("type", "`text`, or a type of image.", choices=("text", *_IMAGE_TYPES))
_TEXT = TextField("text", "The text of the part.", required=True)
_PARTS = _PartsField(
    "content",
    "Texts, which are joined by line breaks, or an image.",
    required=True,
    fields=(_TEXT_TYPE, _TEXT),
    many=True,
)
_INPUTS = ObjectField(
    "inputs",
    "The inputs: texts, or images as data URIs.",
    required=True,
    fields=(_PARTS,),
    many=True,
    count_as_texts=True,
)
_INPUT_TYPE = InputTypeField("input_type", "Purpose of the texts; selects the model's prompt.")
_TRUNCATION = BoolField("truncation", "If false, texts over the token limit are errors.")
_DIMENSIONS = DimensionsField(
    "output_dimension", "Number of leading components to return, normalized to unit length."
)
_OUTPUT_TYPE = OutputTypeField("output_dtype", "Type of the components.")
_FIELDS = (
    _INPUTS,
    MODEL,
    _INPUT_TYPE,
    _TRUNCATION,
    _DIMENSIONS,
    _OUTPUT_TYPE,
    openai_requests.ENCODING_FORMAT,
    CHUNK,
    USE_CACHE,
)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/multimodalembeddings`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: an input is an image, and the model takes texts only.
    """
    items = _INPUTS(body)
    if items is None:
        raise InvalidRequest("`inputs` is missing. Send a list of objects.", "inputs")
    inputs = tuple(_input(item, spec) for item in items)
    truncate, chunk = _TRUNCATION(body), CHUNK(body)
    truncation: Truncation = "error" if truncate is False else "end"
    job = EmbedJob(
        inputs,
        input_type=_INPUT_TYPE(body, spec),
        dimensions=_DIMENSIONS(body),
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
    )
    encoding = openai_requests.ENCODING_FORMAT(body)
    encoder = VectorEncoder(spec, _OUTPUT_TYPE(body), as_base64=encoding == "base64")
    return ParsedRequest(job, partial(_render, encoder=encoder), has_floats=encoder.is_float)


def _input(item: Body, spec: ModelSpec) -> RequestInput:
    parts = _PARTS(item)
    if not parts:
        raise InvalidRequest("Each of `inputs` must be an object with a list `content`.", "inputs")
    types = [_TYPE(part) for part in parts]
    if None in types:
        raise InvalidRequest("Each part of `content` must have a `type`.", "inputs")
    if all(type_ == "text" for type_ in types):
        return "\n".join(map(_text_of_part, parts))
    if not takes_images(spec):
        raise UnsupportedOperation(f"The model {spec.name!r} embeds texts only.", "inputs")
    if len(parts) > 1:
        raise InvalidRequest(
            "The model embeds a text or an image, not both together. Send `content` with the "
            "image alone.",
            "inputs",
        )
    return parse_image(parts[0].get(types[0]), "inputs")


def _text_of_part(part: Body) -> str:
    text = _TEXT(part)
    if not text:
        raise EmptyInput("A part of the type `text` has no text.", "inputs")
    return text


class Usage(TypedDict):
    """What Voyage bills; the total includes the tokens of images."""

    text_tokens: int
    image_pixels: int
    video_pixels: int
    total_tokens: int


class EmbeddingsReply(TypedDict):
    """The reply of `POST /v1/multimodalembeddings`."""

    object: Literal["list"]
    data: list[openai_requests.EmbeddingItem]
    model: str
    usage: Usage


def _render(result: EmbedResult, *, encoder: VectorEncoder) -> bytes:
    inputs = result.inputs
    counts = zip(inputs, result.token_counts.tolist(), strict=True)
    reply: EmbeddingsReply = {
        "object": "list",
        "data": openai_requests.embedding_items(result, encoder),
        "model": result.model,
        "usage": {
            "text_tokens": sum(n for value, n in counts if isinstance(value, str)),
            "image_pixels": sum(int(pixel_count(v)) for v in inputs if isinstance(v, Image)),
            "video_pixels": 0,
            "total_tokens": result.total_tokens,
        },
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ErrorReply(TypedDict):
    """The body of an error."""

    detail: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"detail": message}`."""
    body: ErrorReply = {"detail": str(error)}
    return ErrorResponse(error.status, orjson.dumps(body))


DIALECT = Dialect(
    name="Voyage",
    order=68,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        Endpoint(
            path="/v1/multimodalembeddings",
            summary="Embed texts and images.",
            deciding_key="inputs",
            fields=_FIELDS,
            parse=parse,
            reply_schema=schema_of(EmbeddingsReply),
            task="embed_images",
        ),
    ),
)
