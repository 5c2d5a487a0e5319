"""Cohere's format: `POST /v2/embed`, `POST /v1/tokenize` and `POST /v1/detokenize`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.inputs import Input
from serve_app.jobs import DecodeJob, EmbedJob, TokenizeJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.types import Tokenization, Truncation
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    InputTypeField,
    IntField,
    ModelField,
    ObjectField,
    SchemaContext,
    TextField,
    TextsField,
    TokenIdsField,
)
from serve_app.web.schema.json_schema import INTEGER, STRING, VECTOR, Schema, array
from serve_app.web.schema.typed_dict import schema_of
from serve_app.web.schema.vector_encoding import OUTPUT_TYPES, OutputTypesField, VectorEncoder


class _EmptyListField(Field):
    """A list that must be empty: inputs that the model doesn't support."""

    __slots__ = ()

    def __call__(self, body: Body) -> None:
        if body.get(self.name) not in (None, []):
            raise InvalidRequest(f"`{self.name}` must be empty. {self.description}", self.name)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {"type": "array", "maxItems": 0}


_INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
_TRUNCATIONS: dict[str | None, Truncation] = {"NONE": "error", "START": "start"}

_MODEL = ModelField("model", "Name or alias of the served model.")
_INPUT_TYPE = InputTypeField(
    "input_type",
    "Purpose of the texts; selects the model's prompt.",
    required=True,
    choices=_INPUT_TYPES,
)
_TEXTS = TextsField(
    "texts", "The texts, unless `inputs` has them.", allow_single=False, exclusive_with="inputs"
)
_TYPE = EnumField("type", "Only `text` is supported.", choices=("text",))
_PART_TEXT = TextField("text", "The text of the part.", required=True)
_PARTS = ObjectField(
    "content", "The parts of the text.", required=True, fields=(_TYPE, _PART_TEXT), many=True
)
_INPUTS = ObjectField(
    "inputs",
    "Texts as lists of parts, instead of `texts`. Parts are joined by line breaks.",
    fields=(_PARTS,),
    many=True,
    count_as_texts=True,
)
_IMAGES = _EmptyListField("images", "The model takes no images.")
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
_PRIORITY = IntField(
    "priority", "Values above 0 put the request into the bulk lane.", minimum=0, maximum=999
)
_FIELDS = (
    _MODEL,
    _INPUT_TYPE,
    _TEXTS,
    _INPUTS,
    _IMAGES,
    _DIMENSIONS,
    _EMBEDDING_TYPES,
    _TRUNCATE,
    _MAX_TOKENS,
    _PRIORITY,
    CHUNK,
    USE_CACHE,
)
_TEXT = TextField("text", "The text to tokenize.", required=True)
_TOKENS = TokenIdsField("tokens", "The token ids of a text.", required=True, many=False)


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
    texts = _texts(body)
    truncation, chunk = _TRUNCATIONS.get(_TRUNCATE(body), "end"), CHUNK(body)
    max_tokens = _MAX_TOKENS(body)
    job = EmbedJob(
        texts,
        input_type=_INPUT_TYPE(body, spec),
        dimensions=_DIMENSIONS(body),
        lane="bulk" if _PRIORITY(body) else None,
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
        max_tokens=None if max_tokens is None else min(max_tokens, spec.max_tokens),
    )
    has_floats = any(encoder.is_float for encoder in encoders.values())
    return ParsedRequest(
        job, partial(_render, encoders=encoders, texts=texts), has_floats=has_floats
    )


def _texts(body: Body) -> tuple[Input, ...]:
    _IMAGES(body)
    inputs = _INPUTS(body)
    if inputs is None:
        return _TEXTS(body)
    if body.get(_TEXTS.name) is not None:
        raise InvalidRequest("Send one of `texts` and `inputs`, not both.", "texts")
    return tuple(_text_of_input(item) for item in inputs)


def _text_of_input(item: Body) -> str:
    """Returns the text of `{"content": [{"type": "text", "text": …}, …]}`."""
    parts = _PARTS(item)
    if parts is None:
        raise InvalidRequest("Each of `inputs` must be an object with a list `content`.", "inputs")
    return "\n".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Body) -> str:
    _TYPE(part)
    text = _PART_TEXT(part)
    if not text:
        raise EmptyInput("A part of `content` has no text. The model takes nothing else.", "inputs")
    return text


def parse_tokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/tokenize`.

    Raises:
        InvalidRequest: a field is missing, empty or has a wrong type.
    """
    text = _TEXT(body)
    if text is None:
        raise InvalidRequest("`text` is missing. Send a string.", "text")
    if not text:
        raise EmptyInput("`text` is empty. Send at least one character.", "text")
    return ParsedRequest(TokenizeJob((text,), add_special_tokens=False), _render_tokens)


def parse_detokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v1/detokenize`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    return ParsedRequest(DecodeJob(_TOKENS(body)), _render_text)


class ApiVersion(TypedDict):
    """The version of Cohere's API."""

    version: str


class Meta(TypedDict):
    """What every reply has."""

    api_version: ApiVersion


class BilledUnits(TypedDict):
    """What the request is billed for."""

    input_tokens: int


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
    texts: Annotated[Sequence[Input], array(STRING)]
    meta: EmbedMeta
    response_type: Literal["embeddings_by_type"]


class TokenizeReply(TypedDict):
    """The reply of `POST /v1/tokenize`."""

    tokens: list[int]
    token_strings: list[str]
    meta: Meta


class DetokenizeReply(TypedDict):
    """The reply of `POST /v1/detokenize`."""

    text: str
    meta: Meta


_META: Meta = {"api_version": {"version": "2"}}


def _render(
    result: EmbedResult, *, encoders: Mapping[str, VectorEncoder], texts: Sequence[Input]
) -> bytes:
    reply: EmbedReply = {
        "id": str(uuid4()),
        "embeddings": {name: encoder(result) for name, encoder in encoders.items()},
        "texts": texts,
        "meta": {
            **_META,
            "billed_units": {"input_tokens": result.total_tokens},
            "cached_tokens": result.cached_tokens,
        },
        "response_type": "embeddings_by_type",
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_tokens(rows: Sequence[Tokenization]) -> bytes:
    (row,) = rows
    reply: TokenizeReply = {"tokens": row.ids, "token_strings": row.tokens, "meta": _META}
    return orjson.dumps(reply)


def _render_text(texts: Sequence[str]) -> bytes:
    reply: DetokenizeReply = {"text": texts[0], "meta": _META}
    return orjson.dumps(reply)


class ErrorReply(TypedDict):
    """The body of an error."""

    message: str


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"message": message}`."""
    body: ErrorReply = {"message": str(error)}
    return ErrorResponse(error.status, orjson.dumps(body))


DIALECT = Dialect(
    name="Cohere",
    order=50,
    render_error=render_error,
    error_schema=schema_of(ErrorReply),
    endpoints=(
        Endpoint(
            path="/v2/embed",
            summary="Embed texts.",
            deciding_key="input_type",
            fields=_FIELDS,
            parse=parse,
            reply_schema=schema_of(EmbedReply),
        ),
        Endpoint(
            path="/v1/tokenize",
            summary="Tokenize a text with the model's tokenizer.",
            deciding_key="text",
            fields=(_TEXT, _MODEL),
            parse=parse_tokenize,
            reply_schema=schema_of(TokenizeReply),
        ),
        Endpoint(
            path="/v1/detokenize",
            summary="Decode token ids to text.",
            deciding_key="tokens",
            fields=(_TOKENS, _MODEL),
            parse=parse_detokenize,
            reply_schema=schema_of(DetokenizeReply),
        ),
    ),
)
