"""Infinity's format, close to OpenAI's: `POST /embeddings`, `/rerank`, `/classify`, `GET /models`.

`infinity_scores` holds the bodies of `/rerank` and `/classify`.
"""

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
from serve_app.inputs import RequestInput
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.tasks import Task
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import infinity_scores, openai_requests
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.dialects.infinity_scores import MODEL
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    SchemaContext,
    StringField,
    TextsField,
)
from serve_app.web.schema.images import parse_image, takes_images
from serve_app.web.schema.json_schema import Schema, enum
from serve_app.web.schema.typed_dict import schema_of
from serve_app.web.schema.vector_encoding import VectorEncoder


class _ModalityField(Field):
    """The modality of all inputs."""

    __slots__ = ()

    def __call__(self, body: Body, spec: ModelSpec) -> str | None:
        """Returns the modality; None where it is absent.

        Raises:
            UnsupportedOperation: the model doesn't support it.
        """
        value = body.get(self.name)
        if value == "audio" or (value == "image" and not takes_images(spec)):
            raise UnsupportedOperation(f"The model {spec.name!r} embeds texts only.", self.name)
        return EnumField(self.name, "", choices=_modalities(spec))(body)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return enum(_modalities(context.spec))


def _modalities(spec: ModelSpec) -> tuple[str, ...]:
    return ("text", "image") if takes_images(spec) else ("text",)


_INPUT = TextsField(
    "input",
    "A text, or a list of texts. White space around them is stripped.",
    required=True,
    allow_blank=False,
)
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return; 0 returns all.", allow_zero=True
)
_OUTPUT_DIMENSION = DimensionsField("output_dimension", "Same as `dimensions` (LiteLLM).")
_MODALITY = _ModalityField("modality", "`text`, or `image` for data URIs.")
_USER = StringField("user", "Accepted for compatibility and ignored.")


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /embeddings`; strips white space around texts.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the modality is image or audio.
    """
    encoding = openai_requests.ENCODING_FORMAT(body)
    inputs = _inputs(body, spec)
    _USER(body)
    dimensions, output_dimension = _DIMENSIONS(body), _OUTPUT_DIMENSION(body)
    openai_requests.validate_ignored(spec, output_dimension)
    job = EmbedJob(
        inputs,
        dimensions=output_dimension if dimensions is None else dimensions,
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    encoder = VectorEncoder(spec, None, as_base64=encoding == "base64")
    return ParsedRequest(job, partial(_render, encoder=encoder), has_floats=encoder.is_float)


def _inputs(body: Body, spec: ModelSpec) -> tuple[RequestInput, ...]:
    """Returns texts without white space around them, or images."""
    modality, inputs = _MODALITY(body, spec), _INPUT(body)
    if modality == "image":
        return tuple(parse_image(item, _INPUT.name) for item in inputs)
    return tuple(item.strip() if isinstance(item, str) else item for item in inputs)


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


#: Infinity's names of tasks.
_CAPABILITIES: dict[Task, str] = {
    "embed": "embed",
    "embed_images": "image_embed",
    "rerank": "rerank",
    "classify": "classify",
}


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
        "capabilities": [_CAPABILITIES[task] for task in spec.tasks if task in _CAPABILITIES],
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
                MODEL,
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
            has_images=lambda body: body.get(_MODALITY.name) == "image",
        ),
        Endpoint(
            path="/rerank",
            summary="Rerank documents by their relevance to a query.",
            deciding_key="documents",
            fields=infinity_scores.RERANK_FIELDS,
            parse=infinity_scores.parse_rerank,
            reply_schema=schema_of(infinity_scores.RerankReply),
            task="rerank",
        ),
        Endpoint(
            path="/classify",
            summary="Classify texts.",
            deciding_key="input",
            fields=infinity_scores.CLASSIFY_FIELDS,
            parse=infinity_scores.parse_classify,
            reply_schema=schema_of(
                infinity_scores.ClassifyReply | infinity_scores.VllmClassifyReply
            ),
            task="classify",
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
