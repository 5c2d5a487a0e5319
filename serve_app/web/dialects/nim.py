"""NVIDIA NIM's health checks. NIM's fields of `/v1/embeddings` are read by the OpenAI dialect."""

from collections.abc import Mapping
from typing import TypedDict

import orjson

from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.typed_dict import schema_of


class HealthReply(TypedDict):
    """The reply of both health checks."""

    object: str
    message: str
    ready: bool


def _health_reply(ready: bool) -> HealthReply:
    message = "ready" if ready else "not ready"
    return {"object": "health.response", "message": message, "ready": ready}


async def _ready(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    healthy = (await catalog.health()).healthy
    return ViewResponse(orjson.dumps(_health_reply(healthy)), 200 if healthy else 503)


async def _live(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    return ViewResponse(orjson.dumps(_health_reply(ready=True)))


DIALECT = Dialect(
    name="NIM",
    order=70,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    views=(
        ViewRoute(
            path="/v1/health/ready",
            summary="Readiness: whether a live replica has computed a vector recently.",
            respond=_ready,
            reply_schema=schema_of(HealthReply),
            public=True,
            statuses={503: "Not ready."},
        ),
        ViewRoute(
            path="/v1/health/live",
            summary="Liveness: whether the service answers requests.",
            respond=_live,
            reply_schema=schema_of(HealthReply),
            public=True,
        ),
    ),
)
