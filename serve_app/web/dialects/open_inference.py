"""KServe's V2 format, the Open Inference Protocol: tensors of strings → tensors of vectors.

The texts are the `BYTES` tensor `text`, or the first tensor of this type, of shape [n] or [n, 1].
The vectors are the `FP32` tensor `embedding` of shape [n, dimensions]. The model has one version.

`open_inference_requests` holds the bodies of `infer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NotRequired, TypedDict

import orjson

from serve_app import __version__
from serve_app.errors import EmbedServeError, InvalidJSON, UnsupportedMediaType
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect, ErrorResponse
from serve_app.web.dialects import sidecar
from serve_app.web.dialects.open_inference_requests import (
    FIELDS,
    INPUT_TENSOR,
    OUTPUT_TENSOR,
    InferReply,
    parse,
)
from serve_app.web.dialects.status import UNHEALTHY_STATUSES
from serve_app.web.endpoint import Endpoint, ViewResponse, ViewRoute
from serve_app.web.schema.typed_dict import schema_of

_VERSION = "1"
_BINARY_HINT = (
    "If the request has the header `inference-header-content-length`, it uses the binary tensor "
    "data extension, which isn't supported: with tritonclient, pass `binary_data=False` to "
    "`set_data_from_numpy` and to `InferRequestedOutput`."
)


class ServerReply(TypedDict):
    """The reply of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


async def _server(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: ServerReply = {"name": "embedserve", "version": __version__, "extensions": []}
    return ViewResponse(orjson.dumps(reply))


class LiveReply(TypedDict):
    """The reply of `GET /v2/health/live`."""

    live: bool


async def _live(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: LiveReply = {"live": True}
    return ViewResponse(orjson.dumps(reply))


class ReadyReply(TypedDict):
    """The reply of `GET /v2/health/ready`."""

    ready: bool


async def _ready(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    healthy = (await catalog.health()).healthy
    reply: ReadyReply = {"ready": healthy}
    return ViewResponse(orjson.dumps(reply), 200 if healthy else 503)


class ModelReadyReply(TypedDict):
    """The reply of `GET /v2/models/{model}/ready`."""

    name: str
    ready: bool


async def _model_ready(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    name = str(arguments["model"])
    healthy = (await catalog.resolve(name).health()).healthy
    reply: ModelReadyReply = {"name": name, "ready": healthy}
    return ViewResponse(orjson.dumps(reply), 200 if healthy else 503)


class TensorInfo(TypedDict):
    """A tensor of the model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelReply(TypedDict):
    """The reply of `GET /v2/models/{model}`."""

    name: str
    versions: NotRequired[list[str]]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


async def _model(
    catalog: Catalog, arguments: Mapping[str, Any], *, versions: Sequence[str] = ()
) -> ViewResponse:
    name = str(arguments["model"])
    spec = catalog.resolve(name).spec
    reply: ModelReply = {
        "name": name,
        "platform": "embedserve",
        "inputs": [{"name": INPUT_TENSOR, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": OUTPUT_TENSOR, "datatype": "FP32", "shape": [-1, spec.dim]}],
    }
    if "embed" not in spec.tasks:  # other tasks have no tensors here
        reply["inputs"], reply["outputs"] = [], []
    if versions:
        reply["versions"] = list(versions)
    return ViewResponse(orjson.dumps(reply))


def render_error(error: EmbedServeError) -> ErrorResponse:
    """Returns the error as `{"error": message}`."""
    hint = f" {_BINARY_HINT}" if type(error) in (InvalidJSON, UnsupportedMediaType) else ""
    body: sidecar.ErrorReply = {"error": str(error) + hint}
    return ErrorResponse(error.status, orjson.dumps(body))


_MODEL_PATH = "/v2/models/{model:path}"
_VERSION_PATH = f"{_MODEL_PATH}/versions/{_VERSION}"
_INFER = Endpoint(
    path=f"{_MODEL_PATH}/infer",
    summary="Embed the texts of a tensor.",
    deciding_key="inputs",
    fields=FIELDS,
    parse=parse,
    reply_schema=schema_of(InferReply),
)
_READY = ViewRoute(
    path=f"{_MODEL_PATH}/ready",
    summary="Readiness of the model.",
    respond=_model_ready,
    reply_schema=schema_of(ModelReadyReply),
    public=True,
    statuses=UNHEALTHY_STATUSES,
)
_METADATA = ViewRoute(
    path=_MODEL_PATH,
    summary="Describe the model and its tensors.",
    respond=_model,
    reply_schema=schema_of(ModelReply),
)

DIALECT = Dialect(
    name="Open Inference Protocol",
    order=150,
    render_error=render_error,
    error_schema=sidecar.ERROR_SCHEMA,
    json_type_optional=True,
    endpoints=(
        # A path parameter of a model takes everything, so that the paths with a version go first.
        replace(
            _INFER,
            path=f"{_VERSION_PATH}/infer",
            parse=partial(parse, version=_VERSION),
        ),
        _INFER,
    ),
    views=(
        ViewRoute(
            path="/v2",
            summary="Describe the server.",
            respond=_server,
            reply_schema=schema_of(ServerReply),
            public=True,
        ),
        ViewRoute(
            path="/v2/health/live",
            summary="Liveness: whether the service answers requests.",
            respond=_live,
            reply_schema=schema_of(LiveReply),
            public=True,
        ),
        ViewRoute(
            path="/v2/health/ready",
            summary="Readiness: whether a live replica has computed a vector recently.",
            respond=_ready,
            reply_schema=schema_of(ReadyReply),
            public=True,
            statuses=UNHEALTHY_STATUSES,
        ),
        replace(_READY, path=f"{_VERSION_PATH}/ready"),
        replace(_METADATA, path=_VERSION_PATH, respond=partial(_model, versions=(_VERSION,))),
        _READY,
        _METADATA,
    ),
)
