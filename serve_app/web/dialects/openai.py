"""OpenAI's wire format: `POST /v1/embeddings`, `GET /v1/models`, and its error envelope.

With the fields that Jina, Voyage, NIM and vLLM add to it, where they don't contradict it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from serve_app.errors import EmbedServeError, InvalidRequest, ModelNotFound
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob, EmbedResult, Lane, Truncation
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
    BoolField,
    DimensionsField,
    EnumField,
    InputTypeField,
    IntField,
    ModelField,
    Scope,
    StringField,
    TextsField,
)
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    STRING,
    Schema,
    any_of,
    array,
    enum,
    nullable,
    object_,
)
from serve_app.web.schema.vector_encoding import EMBEDDING, Encoder, VectorType

#: What a field of a job is called in this dialect.
_PARAMS = {"texts": "input", "max_tokens": "truncate_prompt_tokens"}

_INPUT = TextsField(
    "input", "One text, or a list; or the model's token ids.", True, allow_token_ids=True
)
_MODEL = ModelField("model", "The served model, by any of its names.")
ENCODING_FORMAT = EnumField(
    "encoding_format", "`base64`: each vector's bytes, little-endian.", choices=("float", "base64")
)
_DIMENSIONS = DimensionsField("dimensions", "Components to keep, at unit length again.")
_USER = StringField("user", "Taken, and not used.")
_INPUT_TYPE = InputTypeField("input_type", "What the texts are for (Voyage, NIM).")
_TASK = InputTypeField("task", "What the texts are for (Jina).")
_OUTPUT_DIMENSION = DimensionsField("output_dimension", "As `dimensions` (Voyage).")
_OUTPUT_DTYPE = VectorType("output_dtype", "Type of the components (Voyage).")
_EMBEDDING_TYPE = VectorType("embedding_type", "Type of the components (Jina, NIM).")
_NORMALIZED = BoolField("normalized", "Vectors of unit length, whatever the model gives (Jina).")
_TRUNCATION = BoolField("truncation", "false: a text that is too long is an error (Voyage).")
_SIDE = EnumField(
    "truncation_side", "Which end a text that is too long loses (vLLM).", choices=("left", "right")
)
_PRIORITY = IntField("priority", "Above 0: the request can wait (vLLM).")


class _CutTo(IntField):
    """vLLM says -1 for as many as the model takes."""

    __slots__ = ()

    def __call__(self, body: Body) -> int | None:
        value = IntField.__call__(self, body)
        return None if value == -1 else value

    def _kind(self, scope: Scope) -> Schema:
        return any_of({"const": -1}, INTEGER | {"minimum": 1, "maximum": scope.spec.max_tokens})


_CUT_TO = _CutTo(
    "truncate_prompt_tokens",
    "Tokens that a text is cut to; -1: all that the model takes (vLLM).",
    minimum=-1,
)


class _Never(BoolField):
    """Something that isn't done here: true would get other vectors than were asked for."""

    __slots__ = ()

    def __call__(self, body: Body) -> bool | None:
        if BoolField.__call__(self, body):
            raise InvalidRequest(f"`{self.name}` isn't served here. Leave it out.", self.name)
        return False

    def _kind(self, scope: Scope) -> Schema:
        return {"const": False}


_LATE_CHUNKING = _Never("late_chunking", "Isn't served (Jina).")
_EMBED_DTYPE = EnumField("embed_dtype", "Others aren't served (vLLM).", choices=("float32",))
_ENDIANNESS = EnumField("endianness", "Another isn't served (vLLM).", choices=("native", "little"))


_UNSERVED = (_LATE_CHUNKING, _EMBED_DTYPE, _ENDIANNESS)


class _Truncate(EnumField):
    """Jina says true or false, NIM says it in words."""

    __slots__ = ()

    def __call__(self, body: Body) -> str | None:
        value = body.get(self.name)
        if isinstance(value, bool):
            return "END" if value else "NONE"
        return EnumField.__call__(self, body)

    def _kind(self, scope: Scope) -> Schema:
        return any_of(BOOLEAN, enum(self.choices))


_TRUNCATE = _Truncate(
    "truncate",
    "What a text that is too long loses; false or NONE: it is an error (Jina, NIM).",
    choices=("NONE", "START", "END"),
)

FIELDS = (
    _INPUT,
    _MODEL,
    ENCODING_FORMAT,
    _DIMENSIONS,
    _USER,
    _INPUT_TYPE,
    _TASK,
    _OUTPUT_DIMENSION,
    _OUTPUT_DTYPE,
    _EMBEDDING_TYPE,
    _NORMALIZED,
    _TRUNCATE,
    _TRUNCATION,
    _SIDE,
    _CUT_TO,
    _PRIORITY,
    *_UNSERVED,
    CHUNK,
    USE_CACHE,
)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Reads the body of `POST /v1/embeddings`. null stands for an absent optional field.

    Raises:
        InvalidRequest: the body isn't of the dialect's shape. Whether its values can be served
            (the model's name, the number of texts, …) is not decided here.
    """
    if body.keys() <= _COMMON:
        job = EmbedJob(_INPUT(body), _MODEL(body), dimensions=_DIMENSIONS(body))
        encoding, dtype = ENCODING_FORMAT(body), None
        _USER(body)
    else:
        job, encoding, dtype = _parse_all(body, spec)
    encoder = Encoder(spec, dtype, as_base64=encoding == "base64")
    return ParsedRequest(job, partial(render, encoder=encoder))


#: Of OpenAI's own fields; a request that has no others is read in half the time.
_COMMON = {field.name for field in (_INPUT, _MODEL, ENCODING_FORMAT, _DIMENSIONS, _USER)}


def _parse_all(body: Body, spec: ModelSpec) -> tuple[EmbedJob, str | None, str | None]:
    _USER(body)
    for field in _UNSERVED:
        field(body)
    here, there = _DIMENSIONS(body), _OUTPUT_DIMENSION(body)
    input_type, task = _INPUT_TYPE(body, spec), _TASK(body, spec)
    dtype, embedding_type = _OUTPUT_DTYPE(body), _EMBEDDING_TYPE(body)
    check_unused(spec, there, task)
    job = EmbedJob(
        texts=_INPUT(body),
        model=_MODEL(body),
        input_type=task if input_type is None else input_type,
        dimensions=there if here is None else here,
        lane=_lane(body),
        use_cache=USE_CACHE(body) is not False,
        normalize=_NORMALIZED(body) is True,
        truncation=_truncation(body),
        max_tokens=_CUT_TO(body),
    )
    return job, ENCODING_FORMAT(body), dtype or embedding_type


def check_unused(
    spec: ModelSpec, dimensions: int | None = None, purpose: str | None = None
) -> None:
    """Looks at values of fields that may not be used, since others mean the same.

    Raises:
        InvalidRequest: they couldn't be.
    """
    if purpose is not None:
        spec.prompt(purpose)
    if dimensions is not None and not 1 <= dimensions <= spec.dim:
        raise InvalidRequest(
            f"`output_dimension` must be between 1 and {spec.dim}; it was {dimensions}.",
            "output_dimension",
        )


def _lane(body: Body) -> Lane | None:
    return "bulk" if (_PRIORITY(body) or 0) > 0 else None


def _truncation(body: Body) -> Truncation:
    side, cut, truncation = _SIDE(body), _TRUNCATE(body), _TRUNCATION(body)
    if CHUNK(body):
        return "chunk"
    if truncation is False or cut == "NONE":
        return "error"
    return "start" if cut == "START" or side == "left" else "end"


def render(result: EmbedResult, *, encoder: Encoder) -> bytes:
    """The reply's body."""
    return orjson.dumps(reply(result, encoder), option=orjson.OPT_SERIALIZE_NUMPY)


def reply(result: EmbedResult, encoder: Encoder) -> dict[str, Any]:
    """The reply, as JSON takes it."""
    tokens = result.total_tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(encoder(result))
        ],
        "model": result.model,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "cached_tokens": result.cached_tokens,
        },
    }


#: Of `reply`.
REPLY: Schema = object_(
    {
        "object": enum(["list"]),
        "data": array(
            object_({"object": enum(["embedding"]), "index": INTEGER, "embedding": EMBEDDING})
        ),
        "model": STRING,
        "usage": object_(
            dict.fromkeys(("prompt_tokens", "total_tokens", "cached_tokens"), INTEGER)
        ),
    }
)


@refusal(
    object_(
        {
            "error": object_(
                {
                    "message": STRING,
                    "type": STRING,
                    "param": nullable(STRING),
                    "code": nullable(STRING),
                }
            )
        }
    )
)
def render_error(error: EmbedServeError) -> ErrorResponse:
    """The error envelope."""
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    param = None if error.param is None else _PARAMS.get(error.param, error.param)
    envelope = {"message": str(error), "type": kind, "param": param, "code": error.code}
    # `detail` is where the clients of Voyage and Jina look; others read `error` only.
    return ErrorResponse(error.status, orjson.dumps({"error": envelope, "detail": str(error)}))


async def _models(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    spec = service.spec
    names = (spec.name, *spec.aliases)
    return ViewResponse(
        orjson.dumps({"object": "list", "data": [_about_model(spec, name) for name in names]})
    )


async def _model(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    """The model, under the name that was asked for.

    Raises:
        ModelNotFound: the model has another name.
    """
    spec, name = service.spec, path["name"]
    if not spec.accepts(name):
        raise ModelNotFound(
            f"The model {name!r} isn't served here. Served: {spec.name!r}.", "model"
        )
    return ViewResponse(orjson.dumps(_about_model(spec, name)))


def _about_model(spec: ModelSpec, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": spec.created_s, "owned_by": "embedserve"}


_ABOUT_MODEL = object_(
    {"id": STRING, "object": enum(["model"]), "created": INTEGER, "owned_by": STRING}
)


async def _ready(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    healthy = (await service.health()).healthy
    return ViewResponse(_nim_health(healthy), 200 if healthy else 503)


async def _live(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    return ViewResponse(_nim_health(True))


def _nim_health(ready: bool) -> bytes:
    message = "ready" if ready else "not ready"
    return orjson.dumps({"object": "health.response", "message": message, "ready": ready})


_NIM_HEALTH = object_({"object": STRING, "message": STRING, "ready": BOOLEAN})

ENDPOINTS = (
    Endpoint(
        "/v1/embeddings",
        "OpenAI",
        "Vectors of texts; with fields of Jina, Voyage, NIM and vLLM.",
        "input",
        FIELDS,
        parse,
        REPLY,
        render_error,
    ),
)
VIEWS = (
    ViewRoute(
        "/v1/models",
        "OpenAI",
        "The model, under each of its names.",
        _models,
        object_({"object": enum(["list"]), "data": array(_ABOUT_MODEL)}),
        render_error,
    ),
    ViewRoute(
        "/v1/models/{name:path}",
        "OpenAI",
        "The model by a name.",
        _model,
        _ABOUT_MODEL,
        render_error,
    ),
    ViewRoute(
        "/v1/health/ready",
        "NIM",
        "Whether a live replica has computed a vector lately.",
        _ready,
        _NIM_HEALTH,
        render_error,
        public=True,
        statuses={503: "Not ready."},
    ),
    ViewRoute(
        "/v1/health/live",
        "NIM",
        "That it answers.",
        _live,
        _NIM_HEALTH,
        render_error,
        public=True,
    ),
)
