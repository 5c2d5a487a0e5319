"""Cohere's wire format: `POST /v2/embed`, and how its tokenizer is asked."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import orjson

from serve_app.errors import EmbedServeError, EmptyInput, InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import (
    DecodeJob,
    EmbedJob,
    EmbedResult,
    Input,
    Tokenization,
    TokenizeJob,
    Truncation,
)
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ErrorResponse, ParsedRequest, refusal
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    InputTypeField,
    IntField,
    ModelField,
    ObjectField,
    Scope,
    TextField,
    TextsField,
    TokenIdsField,
)
from serve_app.web.schema.json_schema import INTEGER, STRING, VECTOR, Schema, array, enum, object_
from serve_app.web.schema.vector_encoding import OUTPUT_TYPES, Encoder, VectorTypes


class _Nothing(Field):
    """A list that must be empty: what the model doesn't take."""

    __slots__ = ()

    def __call__(self, body: Body) -> None:
        if body.get(self.name) not in (None, []):
            raise InvalidRequest(f"`{self.name}` must be empty. {self.description}", self.name)

    def _kind(self, scope: Scope) -> Schema:
        return {"type": "array", "maxItems": 0}


_PURPOSES = ("search_document", "search_query", "classification", "clustering")
_TRUNCATIONS: dict[str | None, Truncation] = {"NONE": "error", "START": "start"}

_MODEL = ModelField("model", "The served model, by any of its names.")
_PURPOSE = InputTypeField("input_type", "What the texts are for.", True, allowed=_PURPOSES)
_TEXTS = TextsField("texts", "Texts; or `inputs`.", allow_single=False, exclusive_with="inputs")
_TYPE = EnumField("type", "Images aren't taken.", choices=("text",))
_PART_TEXT = TextField("text", "A part.", True)
_PART = ObjectField("content", "Its parts.", True, fields=(_TYPE, _PART_TEXT), many=True)
_INPUTS = ObjectField(
    "inputs", "Texts in parts, in place of `texts`.", fields=(_PART,), many=True, texts=True
)
_IMAGES = _Nothing("images", "The model takes no images.")
_DIMENSIONS = DimensionsField("output_dimension", "Components to keep, at unit length again.")
_TYPES = VectorTypes(
    "embedding_types", "The types that vectors are wanted in; `float` unless said otherwise."
)
_TRUNCATE = EnumField(
    "truncate",
    "What a text that is too long loses; NONE: it is an error.",
    choices=("NONE", "START", "END"),
)
_MAX_TOKENS = IntField("max_tokens", "Tokens that a text is cut to, as `truncate` says.", minimum=1)
_PRIORITY = IntField("priority", "Above 0: the request can wait.", minimum=0, maximum=999)
_FIELDS = (
    _MODEL,
    _PURPOSE,
    _TEXTS,
    _INPUTS,
    _IMAGES,
    _DIMENSIONS,
    _TYPES,
    _TRUNCATE,
    _MAX_TOKENS,
    _PRIORITY,
    CHUNK,
    USE_CACHE,
)
_SPELLED = TextField("text", "What is spelled.", True)
_IDS = TokenIdsField("tokens", "Token ids.", True, many=False)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /v2/embed`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or asks for images.
    """
    if body.get("input_type") is None:
        raise InvalidRequest(f"`input_type` is missing: one of {', '.join(_PURPOSES)}.")
    kinds = _TYPES(body) or ("float",)
    encoders = {kind: Encoder(spec, kind) for kind in kinds}
    given = _texts(body)
    truncation, chunk = _TRUNCATIONS.get(_TRUNCATE(body), "end"), CHUNK(body)
    cut_to = _MAX_TOKENS(body)
    job = EmbedJob(
        given,
        model=_MODEL(body),
        input_type=_PURPOSE(body, spec),
        dimensions=_DIMENSIONS(body),
        lane="bulk" if _PRIORITY(body) else None,
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
        max_tokens=None if cut_to is None else min(cut_to, spec.max_tokens),
    )
    return ParsedRequest(job, partial(_render, encoders=encoders, texts=given))


def _texts(body: Body) -> tuple[Input, ...]:
    _IMAGES(body)
    inputs = _INPUTS(body)
    if inputs is None:
        return _TEXTS(body)
    if body.get(_TEXTS.name) is not None:
        raise InvalidRequest("Send one of `texts` and `inputs`, not both.", "texts")
    return tuple(_joined(item) for item in inputs)


def _joined(item: Body) -> str:
    """The text of one of `inputs`: `{"content": [{"type": "text", "text": …}]}`."""
    parts = _PART(item)
    if parts is None:
        raise InvalidRequest("Each of `inputs` must be an object with a list `content`.", "inputs")
    return "\n".join(_part(part) for part in parts)


def _part(part: Body) -> str:
    _TYPE(part)
    text = _PART_TEXT(part)
    if not text:
        raise EmptyInput("A part of `content` has no text. The model takes nothing else.", "inputs")
    return text


def parse_tokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /v1/tokenize`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    text = _SPELLED(body)
    if text is None:
        raise InvalidRequest("`text` is missing. Send a string.", "text")
    if not text:
        raise EmptyInput("`text` is empty. Send at least one character.", "text")
    return ParsedRequest(TokenizeJob((text,), special=False, model=_MODEL(body)), _render_tokens)


def parse_detokenize(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /v1/detokenize`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    return ParsedRequest(DecodeJob(_IDS(body), model=_MODEL(body)), _render_text)


def _render(
    result: EmbedResult, *, encoders: Mapping[str, Encoder], texts: Sequence[Input]
) -> bytes:
    reply = {
        "id": str(uuid4()),
        "embeddings": {kind: encoder(result) for kind, encoder in encoders.items()},
        "texts": texts,
        "meta": _META
        | {
            "billed_units": {"input_tokens": result.total_tokens},
            "cached_tokens": result.cached_tokens,
        },
        "response_type": "embeddings_by_type",
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


_META: dict[str, Any] = {"api_version": {"version": "2"}}


def _render_tokens(rows: Sequence[Tokenization]) -> bytes:
    (row,) = rows
    return orjson.dumps({"tokens": row.ids, "token_strings": row.pieces, "meta": _META})


def _render_text(texts: Sequence[str]) -> bytes:
    return orjson.dumps({"text": texts[0], "meta": _META})


@refusal(object_({"message": STRING}))
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error's body."""
    return ErrorResponse(error.status, orjson.dumps({"message": str(error)}))


_ABOUT: Schema = object_({"api_version": object_({"version": STRING})})
_EMBEDDINGS: Schema = {
    "type": "object",
    "properties": {
        "float": array(VECTOR),
        "base64": array(STRING),
        **{kind: array(array(INTEGER)) for kind in OUTPUT_TYPES if kind != "float"},
    },
    "additionalProperties": False,
}
_REPLY = object_(
    {
        "id": STRING,
        "embeddings": _EMBEDDINGS,
        "texts": array(STRING),
        "meta": object_(
            {
                **_ABOUT["properties"],
                "billed_units": object_({"input_tokens": INTEGER}),
                "cached_tokens": INTEGER,
            }
        ),
        "response_type": enum(["embeddings_by_type"]),
    }
)

ENDPOINTS = (
    Endpoint(
        "/v2/embed",
        "Cohere",
        "Vectors of texts.",
        "input_type",
        _FIELDS,
        parse,
        _REPLY,
        render_error,
    ),
    Endpoint(
        "/v1/tokenize",
        "Cohere",
        "How the model's tokenizer spells a text.",
        "text",
        (_SPELLED, _MODEL),
        parse_tokenize,
        object_({"tokens": array(INTEGER), "token_strings": array(STRING), "meta": _ABOUT}),
        render_error,
    ),
    Endpoint(
        "/v1/detokenize",
        "Cohere",
        "The text of token ids.",
        "tokens",
        (_IDS, _MODEL),
        parse_detokenize,
        object_({"text": STRING, "meta": _ABOUT}),
        render_error,
    ),
)
