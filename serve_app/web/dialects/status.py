"""What tells of the service: our own routes, and the shapes that several dialects share."""

import asyncio
import time
from collections.abc import Mapping

import orjson

from serve_app.service.embed import EmbedService
from serve_app.web.dialects import openai, sidecar, tei
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.json_schema import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    array,
    enum,
    nullable,
    object_,
)

_NOT_HEALTHY = {503: "No live replica has computed a vector lately."}


async def _health(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    report, cache, device = await asyncio.gather(
        service.health(), service.cache_state(), service.device()
    )
    degraded = cache.state in ("degraded", "unknown")
    body = {
        "status": ("degraded" if degraded else "ok") if report.healthy else "unavailable",
        "reason": report.reason or cache.reason,
        "last_vector_age_s": None if report.age_s is None else round(report.age_s, 3),
        "model": service.spec.name,
        "dim": service.spec.dim,
        "device": device,
        "cache": cache._asdict(),
        "unix": time.time(),
    }
    if not report.healthy:
        body |= {"error": "unhealthy", "error_type": "Unhealthy"}  # TEI's words
    return ViewResponse(orjson.dumps(body), 200 if report.healthy else 503)


_HEALTH = object_(
    {
        "status": enum(["ok", "degraded", "unavailable"]),
        "reason": nullable(STRING),
        "last_vector_age_s": nullable(NUMBER),
        "model": STRING,
        "dim": INTEGER,
        "device": nullable(STRING),
        "cache": object_({"state": STRING, "reason": nullable(STRING), "kind": STRING}),
        "unix": NUMBER,
        "error": STRING,
        "error_type": STRING,
    },
    optional=("error", "error_type"),
)


async def _info(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    info = await service.info()
    return ViewResponse(orjson.dumps(tei.info(service, info["precision"]) | info))


async def _metrics(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    text = await service.replica_stats.prometheus_text()
    return ViewResponse(text.encode(), media_type="text/plain; version=0.0.4")


async def _embedding_health(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    report = await service.health()
    body = {
        "status": "healthy" if report.healthy else "unhealthy",
        "model_server": report.healthy,
        "model": service.spec.name,
        "reason": report.reason,
    }
    return ViewResponse(orjson.dumps(body), 200 if report.healthy else 503)


async def _embedding_stats(service: EmbedService, path: Mapping[str, str]) -> ViewResponse:
    totals = await service.replica_stats.totals()
    body = {
        "model": service.spec.name,
        **{name: round(value, 3) for name, value in totals._asdict().items()},
        "cache_hit_rate": totals.cached_texts / totals.texts if totals.texts else 0.0,
        "seconds_per_request": totals.seconds / totals.requests if totals.requests else 0.0,
    }
    return ViewResponse(orjson.dumps(body))


_STATS = object_(
    {
        "model": STRING,
        **dict.fromkeys(
            ("requests", "failed", "texts", "cached_texts", "tokens", "seconds"), NUMBER
        ),
        "cache_hit_rate": NUMBER,
        "seconds_per_request": NUMBER,
    }
)


def _healthy(path: str, dialect: str) -> ViewRoute:
    return ViewRoute(
        path,
        dialect,
        "Whether a live replica has computed a real vector lately.",
        _health,
        _HEALTH,
        openai.render_error,
        public=True,
        statuses=_NOT_HEALTHY,
    )


#: Of `EmbedService.info`, as far as dialects rely on it.
_INFO: Schema = object_(
    {
        "model": STRING,
        "model_id": STRING,
        "version": STRING,
        "dim": INTEGER,
        "device": nullable(STRING),
        "space": STRING,
        "max_input_length": INTEGER,
        "max_client_batch_size": INTEGER,
        "auto_truncate": BOOLEAN,
        "aliases": array(STRING),
    }
)

VIEWS = (
    _healthy("/health", "status"),
    _healthy("/", "TEI"),
    _healthy("/ping", "TEI"),
    ViewRoute(
        "/info", "status", "What is served, and what runs it.", _info, _INFO, sidecar.render_error
    ),
    ViewRoute(
        "/metrics",
        "TEI",
        "Every metric of the service, for Prometheus.",
        _metrics,
        STRING,
        openai.render_error,
    ),
    ViewRoute(
        "/embedding/health",
        "a search product",
        "Whether the model server is there.",
        _embedding_health,
        object_(
            {
                "status": STRING,
                "model_server": BOOLEAN,
                "model": STRING,
                "reason": nullable(STRING),
            }
        ),
        sidecar.render_error,
        public=True,
        statuses=_NOT_HEALTHY,
    ),
    ViewRoute(
        "/embedding/stats",
        "a search product",
        "What was answered since the start, by all replicas.",
        _embedding_stats,
        _STATS,
        sidecar.render_error,
    ),
)
