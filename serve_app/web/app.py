"""The HTTP application: routes, and the way from a request to a reply or an error."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmbedServeError,
    EmptyInput,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RouteNotFound,
    UnsupportedMediaType,
)
from serve_app.metrics import REQUESTS, STAGE_SECONDS, TEXTS, TOKENS
from serve_app.service import EmbedService
from serve_app.types import Bool, EmbedJob, EmbedResult, Lane, Tier, Timings, UInt8
from serve_app.web.dialects import endpoints, infinity, native, openai
from serve_app.web.endpoint import Endpoint
from serve_app.web.limits import Gate, read_body

logger = logging.getLogger(__name__)

#: What `Timings` tells of, in its order, and the whole.
_STAGES = ("cache", "queue", "tokenize", "infer", "total")
_NGINX_CLIENT_CLOSED_REQUEST = 499


def create_app(service: EmbedService) -> Starlette:
    """The application for one service."""
    routes = _Routes(service)
    return Starlette(
        routes=[
            *(Route(path, routes.embed(path), methods=["POST"]) for path in routes.endpoints),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/models", routes.infinity_models),
            Route("/embed/models", routes.native_models),
            Route("/v1/health/ready", routes.ready),
            Route("/v1/health/live", routes.live),
            Route("/embed/health", routes.native_health),
            Route("/health", routes.health),
            Route("/ping", routes.health),
            Route("/info", routes.info),
        ],
        exception_handlers={
            EmbedServeError: routes.known_error,
            HTTPException: routes.http_error,
            ClientDisconnect: routes.client_left,
            Exception: routes.unknown_error,
        },
    )


class _Routes:
    """The endpoints; each is thin, the work is the service's and the dialect's."""

    def __init__(self, service: EmbedService) -> None:
        self._service = service
        self._gate = Gate()
        self._headers = {"x-embedding-space": service.spec.space_id}
        self.endpoints = endpoints()

    def embed(self, path: str) -> Callable[[Request], Awaitable[Response]]:
        """What answers on a path, in the dialect that the request is of."""
        candidates = self.endpoints[path]

        async def answer(request: Request) -> Response:
            return await self._embed(request, candidates)

        return answer

    async def _embed(self, request: Request, candidates: Sequence[Endpoint]) -> Response:
        started = time.perf_counter()
        settings = self._service.settings
        try:
            with self._gate.entered(settings.max_concurrent_requests):
                _require_json(request)
                body = await read_body(
                    request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
                )
                fields = _fields(body)
                endpoint = request.state.endpoint = _chosen(candidates, fields)
                call = endpoint.parse(fields, self._service.spec)
                result = await self._service.embed(_as_headers_say(call.job, request))
                content = call.render(result)
        except EmbedServeError as error:
            reply = self._refuse(request, error)
            self._service.meter.add(REQUESTS, 1, str(reply.status_code))
            return reply
        total_s = time.perf_counter() - started
        self._count(result, total_s)
        headers = {
            "server-timing": server_timing(result.timings, total_s),
            "x-cache": cache_header(result.tiers),
            **endpoint.headers(result, total_s),
        }
        if True in result.truncated.tolist():
            headers["x-truncated-inputs"] = index_ranges(result.truncated)
        return self._json(content, headers=headers)

    def _count(self, result: EmbedResult, total_s: float) -> None:
        meter = self._service.meter
        meter.add(REQUESTS, 1, "200")
        meter.add(TEXTS, len(result.tokens))
        meter.add(TOKENS, result.total_tokens)
        for stage, seconds in zip(_STAGES, (*result.timings, total_s), strict=True):
            meter.add(STAGE_SECONDS, seconds, stage)

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return self._json(openai.render_model(self._service.spec, name))

    async def infinity_models(self, request: Request) -> Response:
        return self._json(infinity.render_models(self._service.spec))

    async def ready(self, request: Request) -> Response:
        healthy = (await self._service.health()).healthy
        return self._json(openai.render_nim_health(healthy), 200 if healthy else 503)

    async def live(self, request: Request) -> Response:
        return self._json(openai.render_nim_health(True))

    async def native_health(self, request: Request) -> Response:
        report, cache = await asyncio.gather(self._service.health(), self._service.cache_state())
        body = native.render_health(self._service.spec, report.healthy, cache.state != "off")
        return self._json(body, 200 if report.healthy else 503)

    async def native_models(self, request: Request) -> Response:
        return self._json(native.render_models(self._service.spec))

    async def models(self, request: Request) -> Response:
        return self._json(openai.render_models(self._service.spec))

    async def health(self, request: Request) -> Response:
        service = self._service
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
        }
        return self._json(orjson.dumps(body), 200 if report.healthy else 503)

    async def info(self, request: Request) -> Response:
        return self._json(orjson.dumps(await self._service.info()))

    def _refuse(self, request: Request, error: EmbedServeError) -> Response:
        """An error, in the words of the dialect that the path belongs to."""
        endpoint: Endpoint | None = getattr(request.state, "endpoint", None)
        if endpoint is None:
            endpoint = next(iter(self.endpoints.get(request.url.path, ())), None)
        status, body = (endpoint.refuse if endpoint else openai.refuse)(error)
        headers = {}
        if isinstance(error, Overloaded):
            headers["retry-after"] = str(error.retry_after_s)
        if isinstance(error, BodyTooLarge | BodyTimeout):
            headers["connection"] = "close"  # the rest of the body is still on its way
        return self._json(body, status, headers)

    async def known_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, EmbedServeError), "Starlette hands over what it was asked to."
        return self._refuse(request, error)

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "Starlette hands over what it was asked to."
        path = request.url.path
        if error.status_code == 404:
            return self._refuse(request, RouteNotFound(f"Nothing is served at {path}."))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            known = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}.")
            reply = self._refuse(request, known)
            reply.headers["allow"] = allowed
            return reply
        return self._refuse(request, InvalidRequest(error.detail))

    async def client_left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=_NGINX_CLIENT_CLOSED_REQUEST)

    async def unknown_error(self, request: Request, error: Exception) -> Response:
        logger.error("Unexpected error at %s", request.url.path, exc_info=error)
        known = EmbedServeError("The server failed in a way it did not expect; its log says more.")
        return self._refuse(request, known)

    def _json(
        self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        return Response(
            body, status, {**self._headers, **(headers or {})}, media_type="application/json"
        )


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"The body's type is {media_type or 'not given'}; send the header "
            "`Content-Type: application/json`."
        )


def _chosen(candidates: Sequence[Endpoint], fields: Mapping[str, Any]) -> Endpoint:
    """The endpoint whose dialect the request is of."""
    if len(candidates) == 1:
        return candidates[0]
    for endpoint in candidates:
        if endpoint.key in fields:
            return endpoint
    keys = " or ".join(f"`{endpoint.key}`" for endpoint in candidates)
    raise EmptyInput(f"The body has neither field of this route: {keys}.", candidates[0].key)


def _as_headers_say(job: EmbedJob, request: Request) -> EmbedJob:
    """The job with what its headers add: who can wait, and whether the cache may help."""
    lane, no_store = _lane(request), _no_store(request)
    if lane is None and not no_store:
        return job
    return replace(job, lane=lane or job.lane, use_cache=job.use_cache and not no_store)


def _lane(request: Request) -> Lane | None:
    match request.headers.get("x-priority"):
        case None:
            return None
        case "interactive":
            return "interactive"
        case "bulk":
            return "bulk"
        case other:
            raise InvalidRequest(
                f"The header `x-priority` must be `interactive` or `bulk`; it was {other!r}.",
                "x-priority",
            )


def _no_store(request: Request) -> bool:
    """Whether the client asks that nothing is taken from a cache or kept in one (RFC 9111)."""
    directives = request.headers.get("cache-control", "").lower().split(",")
    return "no-store" in map(str.strip, directives)


def cache_header(tiers: UInt8) -> str:
    """The header's value: what came from the cache, what not, and from which tiers."""
    came = tiers.tolist()
    misses = came.count(Tier.COMPUTED)
    value = f"hits={len(came) - misses}; misses={misses}"
    hit = ",".join(tier.name.lower() for tier in (Tier.L1, Tier.L2) if tier in came)
    return f"{value}; tier={hit}" if hit else value


def server_timing(timings: Timings, total_s: float) -> str:
    """The header's value (W3C Server Timing), in milliseconds."""
    spent = zip(_STAGES, (*timings, total_s), strict=True)
    return ", ".join(f"{stage};dur={1e3 * seconds:.2f}" for stage, seconds in spent)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = (
            " A text holds half a surrogate pair; send well-formed Unicode."
            if "surrogate" in str(error)
            else ""
        )
        raise InvalidRequest(f"The body isn't valid JSON: {error}.{hint}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields


def index_ranges(flags: Bool) -> str:
    """The places of True in an array of shape (n,), as in `0,4-7,9`."""
    ranges: list[str] = []
    start: int | None = None
    for i, flag in enumerate([*flags.tolist(), False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            ranges.append(str(start) if start == i - 1 else f"{start}-{i - 1}")
            start = None
    return ",".join(ranges)
