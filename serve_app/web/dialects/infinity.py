"""Infinity's wire format: `POST /embeddings` and `GET /models`, nearly OpenAI's."""

import time
from collections.abc import Mapping
from functools import partial
from uuid import uuid4

import orjson

from serve_app.errors import (
    EmbedServeError,
    EmptyInput,
    InvalidJSON,
    InvalidRequest,
    ModelNotFound,
    Unauthorized,
    UnsupportedOperation,
)
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.dialects import openai
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import (
    Endpoint,
    ErrorResponse,
    ParsedRequest,
    ViewResponse,
    ViewRoute,
    refusal,
)
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    ModelField,
    StringField,
    TextsField,
)
from serve_app.web.schema.json_schema import (
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    any_of,
    array,
    enum,
    nullable,
    object_,
)
from serve_app.web.schema.vector_encoding import Encoder

_INPUT = TextsField(
    "input", "One text, or a list; they lose the white space around them.", True, allow_blank=False
)
_MODEL = ModelField("model", "The served model.", wildcard_names=("default/not-specified",))
_DIMENSIONS = DimensionsField("dimensions", "Components to keep; 0: all.", zero=True)
_OUTPUT_DIMENSION = DimensionsField("output_dimension", "As `dimensions` (LiteLLM).")
_MODALITY = EnumField("modality", "Images and sound aren't taken.", choices=("text",))
_USER = StringField("user", "Taken, and not used.")
_DOCUMENTS = TextsField("documents", "Texts.", True, allow_single=False)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /embeddings`; texts lose the white space around them.

    Raises:
        InvalidRequest: it isn't of the dialect's shape, or asks for images or sound.
    """
    encoding = openai.ENCODING_FORMAT(body)
    if body.get("modality") in ("image", "audio"):
        raise UnsupportedOperation(f"The model {spec.name!r} embeds texts only.", "modality")
    _MODALITY(body)
    _USER(body)
    here, there = _DIMENSIONS(body), _OUTPUT_DIMENSION(body)
    openai.check_unused(spec, there)
    job = EmbedJob(
        tuple(text.strip() if isinstance(text, str) else text for text in _INPUT(body)),
        model=_MODEL(body),
        dimensions=there if here is None else here,
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    encoder = Encoder(spec, None, as_base64=encoding == "base64")
    return ParsedRequest(job, partial(_render, encoder=encoder))


def _render(result: EmbedResult, *, encoder: Encoder) -> bytes:
    reply = openai.reply(result, encoder)
    reply |= {"id": f"infinity-{uuid4()}", "created": int(time.time())}
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def refuse_rerank(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Says that the model can't do it.

    Raises:
        UnsupportedOperation: always.
    """
    raise UnsupportedOperation(
        f"The model {spec.name!r} embeds texts; it doesn't rerank them.", "model"
    )


#: Each replica of the model has a queue of its own, which nobody here knows.
_STATS = dict.fromkeys(("queue_fraction", "queue_absolute", "results_pending", "batch_size"))


async def _models(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    spec = service.spec
    models = [
        {
            "id": name,
            "object": "model",
            "owned_by": "infinity",
            "created": spec.created_s,
            "backend": "embedserve",
            "capabilities": ["embed"],
            "stats": _STATS,
        }
        for name in (spec.name, *spec.aliases)
    ]
    return ViewResponse(orjson.dumps({"object": "list", "data": models}))


#: What the dialect's framework refuses, in its own shape; whether the model has as many
#: `dimensions` is not for it to say.
_FIELD_AT_FAULT = (InvalidRequest, EmptyInput, InvalidJSON)
_FAULT = object_({"type": STRING, "loc": array(STRING), "msg": STRING})
#: What a field of a job is called in this dialect.
_PARAMS = {"texts": "input"}


@refusal(
    any_of(
        object_(
            {
                "error": object_(
                    {
                        "message": STRING,
                        "type": nullable(STRING),
                        "param": nullable(STRING),
                        "code": INTEGER,
                    }
                )
            }
        ),
        object_({"detail": any_of(STRING, array(_FAULT))}),
    )
)
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error's envelope, whose code is the status; a list where a field is at fault."""
    if isinstance(error, Unauthorized):
        body = orjson.dumps({"detail": "Unauthorized"})
        return ErrorResponse(error.status, body, {"www-authenticate": "Bearer"})
    if type(error) in _FIELD_AT_FAULT and error.param != "dimensions":
        place = [] if error.param is None else [_PARAMS.get(error.param, error.param)]
        fault = {"type": "value_error", "loc": ["body", *place], "msg": str(error)}
        return ErrorResponse(422, orjson.dumps({"detail": [fault]}))
    status = 400 if isinstance(error, ModelNotFound) else int(error.status)
    envelope = {"message": str(error), "type": None, "param": None, "code": status}
    return ErrorResponse(status, orjson.dumps({"error": envelope}))


_REPLY: Schema = {
    **openai.REPLY,
    "properties": {**openai.REPLY["properties"], "id": STRING, "created": INTEGER},
    "required": [*openai.REPLY["required"], "id", "created"],
}
_ABOUT_MODEL = object_(
    {
        "id": STRING,
        "object": enum(["model"]),
        "owned_by": STRING,
        "created": INTEGER,
        "backend": STRING,
        "capabilities": array(STRING),
        "stats": object_(dict.fromkeys(_STATS, nullable(NUMBER))),
    }
)

ENDPOINTS = (
    Endpoint(
        "/embeddings",
        "Infinity",
        "Vectors of texts.",
        "input",
        (
            _INPUT,
            _MODEL,
            openai.ENCODING_FORMAT,
            _DIMENSIONS,
            _OUTPUT_DIMENSION,
            _MODALITY,
            _USER,
            CHUNK,
            USE_CACHE,
        ),
        parse,
        _REPLY,
        render_error,
    ),
    Endpoint(
        "/rerank",
        "Infinity",
        "For rerankers; refused.",
        "documents",
        (_DOCUMENTS,),
        refuse_rerank,
        {},
        render_error,
    ),
)
VIEWS = (
    ViewRoute(
        "/models",
        "Infinity",
        "The model, under each of its names.",
        _models,
        object_({"object": enum(["list"]), "data": array(_ABOUT_MODEL)}),
        render_error,
    ),
)
