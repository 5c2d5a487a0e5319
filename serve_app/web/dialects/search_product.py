"""The health and statistics routes of a search product's embedding service."""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

import orjson

from serve_app.cost import as_usd
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import sidecar
from serve_app.web.dialects.status import UNHEALTHY_STATUSES
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.typed_dict import schema_of


class HealthReply(TypedDict):
    """The reply of `GET /embedding/health`."""

    status: str
    model_server: bool
    model: str
    reason: str | None


class StatsReply(TypedDict):
    """The reply of `GET /embedding/stats`: totals of all replicas since their start."""

    model: str
    requests: float
    failed: float
    texts: float
    cached_texts: float
    tokens: float
    seconds: float
    cache_hit_rate: float
    seconds_per_request: float
    cost_usd: NotRequired[float]  # where a model has a price
    saved_usd: NotRequired[float]


async def _health(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    report = await catalog.health()
    reply: HealthReply = {
        "status": "healthy" if report.healthy else "unhealthy",
        "model_server": report.healthy,
        "model": catalog.resolve(None, "embed").spec.name,
        "reason": report.reason,
    }
    return ViewResponse(orjson.dumps(reply), 200 if report.healthy else 503)


async def _stats(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    totals = await catalog.replica_stats.totals()
    reply: StatsReply = {
        "model": catalog.resolve(None, "embed").spec.name,
        "requests": round(totals.requests, 3),
        "failed": round(totals.failed, 3),
        "texts": round(totals.texts, 3),
        "cached_texts": round(totals.cached_texts, 3),
        "tokens": round(totals.tokens, 3),
        "seconds": round(totals.seconds, 3),
        "cache_hit_rate": totals.cached_texts / totals.texts if totals.texts else 0.0,
        "seconds_per_request": totals.seconds / totals.requests if totals.requests else 0.0,
    }
    if any(service.spec.nano_usd_per_1k_tokens for service in catalog.services):
        reply["cost_usd"] = as_usd(totals.nano_usd)
        reply["saved_usd"] = as_usd(totals.saved_nano_usd)
    return ViewResponse(orjson.dumps(reply))


DIALECT = Dialect(
    name="search product",
    order=90,
    render_error=sidecar.render_error,
    error_schema=sidecar.ERROR_SCHEMA,
    views=(
        ViewRoute(
            path="/embedding/health",
            summary="Health: whether the model server is available.",
            respond=_health,
            reply_schema=schema_of(HealthReply),
            public=True,
            statuses=UNHEALTHY_STATUSES,
        ),
        ViewRoute(
            path="/embedding/stats",
            summary="Totals of all replicas since their start.",
            respond=_stats,
            reply_schema=schema_of(StatsReply),
        ),
    ),
)
