"""EmbedServe's own status routes: `GET /health`, `GET /metrics` and `GET /autoscaling`.

`GET /info` is in `sidecar`, whose clients read its errors.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import orjson

from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.service.health import HealthReport, service_report
from serve_app.service.tei_metrics import tei_page
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import ViewResponse, ViewRoute
from serve_app.web.schema.json_schema import STRING, Schema
from serve_app.web.schema.typed_dict import schema_of

UNHEALTHY_STATUSES = {503: "No live replica has computed a vector recently."}


class CacheHealth(TypedDict):
    """The state of the shared cache."""

    state: str
    reason: str | None
    kind: str


class ModelHealth(TypedDict):
    """The health of one of several models."""

    status: Literal["ok", "unavailable"]
    reason: str | None
    last_vector_age_s: float | None
    asleep: NotRequired[bool]  #: scaled to zero; the next text starts a replica


class FallbackHealth(TypedDict):
    """A model with a `fallback`, and whether that answers at the moment."""

    status: Literal["ok", "failing"]
    reason: str | None  # why the model itself doesn't answer
    models: list[str]  # the models that answer while it fails, in this order


_FALLBACKS: Schema = {"type": "object", "additionalProperties": schema_of(FallbackHealth)}
_MODELS: Schema = {"type": "object", "additionalProperties": schema_of(ModelHealth)}
_DRIFTS: Schema = {"type": "object", "additionalProperties": {"type": "number"}}


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
    models: NotRequired[Annotated[Mapping[str, ModelHealth], _MODELS]]  #: if several are served
    fallbacks: NotRequired[Annotated[Mapping[str, FallbackHealth], _FALLBACKS]]  #: if there are any
    drift: NotRequired[Annotated[Mapping[str, float], _DRIFTS]]  #: if vectors have moved
    asleep: NotRequired[bool]  #: the model has scaled to zero; the next text starts a replica
    error: NotRequired[str]
    error_type: NotRequired[str]


async def _health(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse:
    """Returns the health of the service, or of the model that the parameter `model` names.

    503 if no replica can run the model, or any model; 200 without the cache.
    """
    name = arguments.get("model")
    service = catalog.resolve(name)
    by_model = catalog.health_by_model() if name is None else _health_of(service)
    reports, cache, device, failures, drifts = await asyncio.gather(
        by_model,
        service.cache_state(),
        service.device(),
        catalog.engine_failures(),
        catalog.drifts(),
    )
    fallbacks = _fallbacks(catalog, reports, failures)
    failing = next((f["reason"] for f in fallbacks.values() if f["status"] == "failing"), None)
    report = reports[service.spec.name]
    ill = [name for name, report in reports.items() if not report.healthy]
    cache_is_down = catalog.settings.health_reports_cache and cache.state in ("degraded", "unknown")
    available = service_report([*reports.values()]).healthy
    degraded = cache_is_down or ill or failing
    reply: HealthReply = {
        "status": ("degraded" if degraded else "ok") if available else "unavailable",
        "reason": report.reason
        or next((reports[name].reason for name in ill), failing or cache.reason),
        "last_vector_age_s": _rounded(report.age_s),
        "model": service.spec.name,
        "dim": service.spec.dim,
        "device": device,
        "cache": {"state": cache.state, "reason": cache.reason, "kind": cache.kind},
        "unix": time.time(),
    }
    if report.is_asleep:
        reply["asleep"] = True
    if len(reports) > 1:
        reply["models"] = {name: _model_health(report) for name, report in reports.items()}
    if fallbacks:
        reply["fallbacks"] = fallbacks
    if drifts:
        reply["drift"] = drifts
    if not available:
        reply["error"], reply["error_type"] = "unhealthy", "Unhealthy"
    return ViewResponse(orjson.dumps(reply), 200 if available else 503)


def _model_health(report: HealthReport) -> ModelHealth:
    health: ModelHealth = {
        "status": "ok" if report.healthy else "unavailable",
        "reason": report.reason,
        "last_vector_age_s": _rounded(report.age_s),
    }
    if report.is_asleep:
        health["asleep"] = True
    return health


def _fallbacks(
    catalog: Catalog, names: Iterable[str], failures: Mapping[str, str]
) -> Mapping[str, FallbackHealth]:
    """Returns the state of those of the named models that have a fallback."""
    return {
        name: {
            "status": "failing" if name in failures else "ok",
            "reason": failures.get(name),
            "models": [*catalog.fallbacks[name].models],
        }
        for name in names
        if name in catalog.fallbacks
    }


async def _health_of(service: EmbedService) -> Mapping[str, HealthReport]:
    return {service.spec.name: await service.health()}


def _rounded(age_s: float | None) -> float | None:
    return None if age_s is None else round(age_s, 3)


async def _metrics(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    page = await catalog.replica_stats.prometheus_text()
    if catalog.settings.tei_metrics:
        specs = [service.spec for service in catalog.services]
        page += await asyncio.to_thread(tei_page, page, specs)
    return ViewResponse(page.encode())


class AutoscalingReply(TypedDict):
    """The reply of `GET /autoscaling`."""

    deployments: list[ScalingRecord]  # those with an autoscaling policy


async def _autoscaling(catalog: Catalog, path_params: Mapping[str, str]) -> ViewResponse:
    reply: AutoscalingReply = {"deployments": await catalog.replica_stats.scaling()}
    return ViewResponse(orjson.dumps(reply))


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
        ViewRoute(
            path="/autoscaling",
            summary="The latest decision on the number of replicas of each deployment, and why.",
            respond=_autoscaling,
            reply_schema=schema_of(AutoscalingReply),
        ),
    ),
)
