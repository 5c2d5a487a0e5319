"""Infinity's format: `POST /embeddings` and `GET /models`, close to OpenAI's."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypedDict
from uuid import uuid4

import orjson

from serve_app.errors import (
    EmbedServeError,
    InvalidRequest,
    ModelNotFound,
    Unauthorized,
    UnsupportedOperation,
)
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import openai_requests
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    ModelField,
    StringField,
    TextsField,
)
from serve_app.web.schema.typed_dict import schema_of
from serve_app.web.schema.vector_encoding import VectorEncoder

_INPUT = TextsField(
    "input",
    "A text, or a list of texts. White space around them is stripped.",
    required=True,
    allow_blank=False,
)
_MODEL = ModelField("model", "The served model.", wildcard_names=("default/not-specified",))
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return; 0 returns all.", allow_zero=True
)
_OUTPUT_DIMENSION = DimensionsField("output_dimension", "Same as `dimensions` (LiteLLM).")
_MODALITY = EnumField("modality", "Only `text` is supported.", choices=("text",))
_USER = StringField("user", "Accepted for compatibility and ignored.")
_DOCUMENTS = TextsField("documents", "The texts to rerank.", required=True, allow_single=False)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /embeddings`; strips white space around texts.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the modality is image or audio.
    """
    encoding = openai_requests.ENCODING_FORMAT(body)
    if body.get("modality") in ("image", "audio"):
        raise UnsupportedOperation(f"The model {spec.name!r} embeds texts only.", "modality")
    _MODALITY(body)
    _USER(body)
    dimensions, output_dimension = _DIMENSIONS(body), _OUTPUT_DIMENSION(body)
    openai_requests.validate_ignored(spec, output_dimension)
    job = EmbedJob(
        tuple(text.strip() if isinstance(text, str) else text for text in _INPUT(body)),
        dimensions=output_dimension if dimensions is None else dimensions,
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    encoder = VectorEncoder(spec, None, as_base64=encoding == "base64")
    return ParsedRequest(job, partial(_render, encoder=encoder), has_floats=encoder.is_float)


class EmbeddingsReply(openai_requests.EmbeddingsReply):
    """The reply of `POST /embeddings`: OpenAI's with an id and a time."""

    id: str
    created: int


def _render(result: EmbedResult, *, encoder: VectorEncoder) -> bytes:
    reply: EmbeddingsReply = {
        **openai_requests.embeddings_reply(result, encoder),
        "id": f"infinity-{uuid4()}",
        "created": int(time.time()),
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def parse_rerank(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Rejects `POST /rerank`: the model isn't a reranker.

    Raises:
        UnsupportedOperation: always.
    """
    raise UnsupportedOperation(
        f"The model {spec.name!r} embeds texts; it doesn't rerank them.", "model"
    )


class ModelStats(TypedDict):
    """Queue statistics, always null: each replica has its own queue, unknown to the others."""

    queue_fraction: float | None
    queue_absolute: float | None
    results_pending: float | None
    batch_size: float | None


class ModelInfo(TypedDict):
    """A served model under one of its names."""

    id: str
    object: Literal["model"]
    owned_by: str
    created: int
    backend: str
    capabilities: list[str]
    stats: ModelStats


class ModelsReply(TypedDict):
    """The reply of `GET /models`."""

    object: Literal["list"]
    data: list[ModelInfo]


async def _models(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    data = [_model_info(spec, name) for spec, name in catalog.names]
    reply: ModelsReply = {"object": "list", "data": data}
    return ViewResponse(orjson.dumps(reply))


def _model_info(spec: ModelSpec, name: str) -> ModelInfo:
    return {
        "id": name,
        "object": "model",
        "owned_by": "infinity",
        "created": spec.created_s,
        "backend": "embedserve",
        "capabilities": ["embed"],
        "stats": {
            "queue_fraction": None,
            "queue_absolute": None,
            "results_pending": None,
            "batch_size": None,
        },
    }


class ErrorEnvelope(TypedDict):
    """The fields of an error; `code` is the status."""

    message: str
    type: str | None
    param: str | None
    code: int


class ErrorReply(TypedDict):
    """The body of most errors."""

    error: ErrorEnvelope


class ValidationFault(TypedDict):
    """A field that failed validation, as FastAPI reports it."""

    type: str
    loc: list[str]
    msg: str


class ValidationErrorReply(TypedDict):
    """The body of a 422."""

    detail: list[ValidationFault]


class UnauthorizedReply(TypedDict):
    """The body of a 401."""

    detail: str


#: Names of this dialect for the fields of a job, used in errors.
_FIELD_NAMES = {"texts": "input"}


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as Infinity does: a 422 with FastAPI's `detail` for invalid fields."""
    if isinstance(error, Unauthorized):
        unauthorized: UnauthorizedReply = {"detail": "Unauthorized"}
        return _response(401, unauthorized, {"www-authenticate": "Bearer"})
    if _is_validation_error(error):
        field = [] if error.param is None else [_FIELD_NAMES.get(error.param, error.param)]
        validation: ValidationErrorReply = {
            "detail": [{"type": "value_error", "loc": ["body", *field], "msg": str(error)}]
        }
        return _response(422, validation)
    status = 400 if isinstance(error, ModelNotFound) else int(error.status)
    body: ErrorReply = {
        "error": {"message": str(error), "type": None, "param": None, "code": status}
    }
    return _response(status, body)


def _response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> ErrorResponse:
    return ErrorResponse(status, orjson.dumps(body), headers or {})


def _is_validation_error(error: EmbedServeError) -> bool:
    """Whether FastAPI would reject the request; it knows nothing of the model's abilities."""
    if isinstance(error, UnsupportedOperation) or error.param == "dimensions":
        return False
    return isinstance(error, InvalidRequest)


DIALECT = Dialect(
    name="Infinity",
    order=40,
    render_error=render_error,
    error_schema=schema_of(ErrorReply | UnauthorizedReply | ValidationErrorReply),
    endpoints=(
        Endpoint(
            path="/embeddings",
            summary="Embed texts.",
            deciding_key="input",
            fields=(
                _INPUT,
                _MODEL,
                openai_requests.ENCODING_FORMAT,
                _DIMENSIONS,
                _OUTPUT_DIMENSION,
                _MODALITY,
                _USER,
                CHUNK,
                USE_CACHE,
            ),
            parse=parse,
            reply_schema=schema_of(EmbeddingsReply),
        ),
        Endpoint(
            path="/rerank",
            summary="Unsupported: the model isn't a reranker.",
            deciding_key="documents",
            fields=(_DOCUMENTS,),
            parse=parse_rerank,
            reply_schema=None,
        ),
    ),
    views=(
        ViewRoute(
            path="/models",
            summary="List the model under each of its names.",
            respond=_models,
            reply_schema=schema_of(ModelsReply),
        ),
    ),
)
