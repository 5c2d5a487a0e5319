"""EmbedServe's own status routes: `GET /health` and `GET /metrics`.

`GET /info` is in `sidecar`, whose clients read its errors.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

import orjson

from serve_app.service.embed import EmbedService
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.json_schema import STRING
from serve_app.web.schema.typed_dict import schema_of

UNHEALTHY_STATUSES = {503: "No live replica has computed a vector recently."}


class CacheHealth(TypedDict):
    """The state of the shared cache."""

    state: str
    reason: str | None
    kind: str


class HealthReply(TypedDict):
    """The reply of `GET /health`. `error` and `error_type` are TEI's, present when unavailable."""

    status: Literal["ok", "degraded", "unavailable"]
    reason: str | None
    last_vector_age_s: float | None
    model: str
    dim: int
    device: str | None
    cache: CacheHealth
    unix: float
    error: NotRequired[str]
    error_type: NotRequired[str]


async def _health(service: EmbedService, path_params: Mapping[str, str]) -> ViewResponse:
    """Returns the health of the service: 503 if no replica can embed, 200 without the cache."""
    report, cache, device = await asyncio.gather(
        service.health(), service.cache_state(), service.device()
    )
    degraded = service.settings.health_reports_cache and cache.state in ("degraded", "unknown")
    reply: HealthReply = {
        "status": ("degraded" if degraded else "ok") if report.healthy else "unavailable",
        "reason": report.reason or cache.reason,
        "last_vector_age_s": None if report.age_s is None else round(report.age_s, 3),
        "model": service.spec.name,
        "dim": service.spec.dim,
        "device": device,
        "cache": {"state": cache.state, "reason": cache.reason, "kind": cache.kind},
        "unix": time.time(),
    }
    if not report.healthy:
        reply["error"], reply["error_type"] = "unhealthy", "Unhealthy"
    return ViewResponse(orjson.dumps(reply), 200 if report.healthy else 503)


async def _metrics(service: EmbedService, path_params: Mapping[str, str]) -> ViewResponse:
    return ViewResponse((await service.replica_stats.prometheus_text()).encode())


def health_route(path: str) -> ViewRoute:
    """Returns a route that answers like `GET /health`."""
    return ViewRoute(
        path=path,
        summary="Health: whether a live replica has computed a vector recently.",
        respond=_health,
        reply_schema=schema_of(HealthReply),
        public=True,
        statuses=UNHEALTHY_STATUSES,
    )


DIALECT = Dialect(
    name="status",
    order=80,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    views=(
        health_route("/health"),
        ViewRoute(
            path="/metrics",
            summary="All metrics of the service, in Prometheus' text format.",
            respond=_metrics,
            reply_schema=STRING,
            media_type="text/plain; version=0.0.4",
        ),
    ),
)
