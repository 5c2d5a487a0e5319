"""OpenAI's format: `POST /v1/embeddings`, `GET /v1/models` and the error envelope.

`openai_requests` holds the body of `/v1/embeddings`, with the fields of Jina, Voyage, NIM and vLLM.
"""

from collections.abc import Mapping
from typing import Literal, TypedDict

import orjson

from serve_app.errors import BudgetExceeded, EmbedServeError
from serve_app.models import ModelSpec
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import openai_requests
from serve_app.web.dialects.openai_inputs import has_images
from serve_app.web.endpoint import Endpoint, ViewResponse, ViewRoute
from serve_app.web.schema.typed_dict import schema_of

#: Names of this dialect for the fields of a job, used in errors.
_FIELD_NAMES = {"texts": "input", "max_tokens": "truncate_prompt_tokens"}


class ErrorEnvelope(TypedDict):
    """The fields of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """The body of an error; clients of Voyage and Jina read `detail`, others `error`."""

    error: ErrorEnvelope
    detail: str


ERROR_SCHEMA = schema_of(ErrorReply)


def error_reply(
    error: EmbedServeError, field_names: Mapping[str, str] = _FIELD_NAMES
) -> ErrorReply:
    """Returns the body of an error.

    Args:
        error: the error.
        field_names: names of the dialect for the fields of a job.
    """
    if isinstance(error, BudgetExceeded):
        kind = error.code  # OpenAI's type and code are equal here
    elif error.status == 429:
        kind = "rate_limit_error"
    elif error.status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    param = None if error.param is None else field_names.get(error.param, error.param)
    message = str(error)
    return {
        "error": {"message": message, "type": kind, "param": param, "code": error.code},
        "detail": message,
    }


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error in OpenAI's envelope."""
    return ErrorResponse(error.status, orjson.dumps(error_reply(error)))


class ModelInfo(TypedDict):
    """A served model under one of its names."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsReply(TypedDict):
    """The reply of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelInfo]


async def _models(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    data = [_model_info(spec, name) for spec, name in catalog.names]
    reply: ModelsReply = {"object": "list", "data": data}
    return ViewResponse(orjson.dumps(reply))


async def _model(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    """Returns the model under the requested name; all names for `/v1/models/`.

    Raises:
        ModelNotFound: the name is neither the model's nor an alias.
    """
    name = path_params["name"].strip("/")
    if not name:
        return await _models(catalog, path_params)
    return ViewResponse(orjson.dumps(_model_info(catalog.resolve(name).spec, name)))


def _model_info(spec: ModelSpec, name: str) -> ModelInfo:
    return {"id": name, "object": "model", "created": spec.created_s, "owned_by": "embedserve"}


DIALECT = Dialect(
    name="OpenAI",
    order=10,
    render_error=render_error,
    error_schema=ERROR_SCHEMA,
    endpoints=(
        Endpoint(
            path="/v1/embeddings",
            summary="Embed texts; also takes fields of Jina, Voyage, NIM and vLLM.",
            deciding_key="input",
            fields=openai_requests.FIELDS,
            parse=openai_requests.parse,
            has_images=has_images,
            reply_schema=schema_of(openai_requests.EmbeddingsReply),
        ),
    ),
    views=(
        ViewRoute(
            path="/v1/models",
            summary="List the model under each of its names.",
            respond=_models,
            reply_schema=schema_of(ModelsReply),
        ),
        ViewRoute(
            path="/v1/models/{name:path}",
            summary="Describe the model under one of its names.",
            respond=_model,
            reply_schema=schema_of(ModelInfo),
        ),
    ),
)
