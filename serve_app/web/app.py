"""The HTTP application: routes, and the way from a request to a reply or an error."""

import asyncio
import logging
import time
from collections.abc import Mapping

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
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    RouteNotFound,
    UnsupportedMediaType,
)
from serve_app.metrics import REQUESTS, STAGE_SECONDS, TEXTS, TOKENS
from serve_app.service import EmbedService
from serve_app.types import Bool, Lane, Tier, Timings, UInt8
from serve_app.web.dialects import openai
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
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/health", routes.health),
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

    async def embeddings(self, request: Request) -> Response:
        started = time.perf_counter()
        settings = self._service.settings
        meter = self._service.meter
        try:
            with self._gate.entered(settings.max_concurrent_requests):
                _require_json(request)
                body = await read_body(
                    request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
                )
                call = openai.parse_embeddings(
                    _loads(body), _lane(request), no_store=_no_store(request)
                )
                result = await self._service.embed(call.job)
                content = openai.render_embeddings(result, call.encoding_format)
        except EmbedServeError as error:
            meter.add(REQUESTS, 1, str(int(error.status)))
            raise
        total_s = time.perf_counter() - started
        meter.add(REQUESTS, 1, "200")
        meter.add(TEXTS, len(result.tokens))
        meter.add(TOKENS, result.total_tokens)
        for stage, seconds in zip(_STAGES, (*result.timings, total_s), strict=True):
            meter.add(STAGE_SECONDS, seconds, stage)
        headers = {
            "server-timing": server_timing(result.timings, total_s),
            "x-cache": cache_header(result.tiers),
        }
        if True in result.truncated.tolist():
            headers["x-truncated-inputs"] = index_ranges(result.truncated)
        return self._json(content, headers=headers)

    async def models(self, request: Request) -> Response:
        return self._json(openai.render_models(self._service.spec))

    async def health(self, request: Request) -> Response:
        report, cache = await asyncio.gather(self._service.health(), self._service.cache_state())
        degraded = cache.state in ("degraded", "unknown")
        body = {
            "status": ("degraded" if degraded else "ok") if report.healthy else "unavailable",
            "reason": report.reason or cache.reason,
            "last_vector_age_s": None if report.age_s is None else round(report.age_s, 3),
            "cache": cache._asdict(),
        }
        return self._json(orjson.dumps(body), 200 if report.healthy else 503)

    async def info(self, request: Request) -> Response:
        return self._json(orjson.dumps(await self._service.info()))

    async def known_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, EmbedServeError), "Starlette hands over what it was asked to."
        headers = {}
        if isinstance(error, Overloaded):
            headers["retry-after"] = str(error.retry_after_s)
        if isinstance(error, BodyTooLarge | BodyTimeout):
            headers["connection"] = "close"  # the rest of the body is still on its way
        return self._json(openai.render_error(error), error.status, headers)

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "Starlette hands over what it was asked to."
        path = request.url.path
        if error.status_code == 404:
            return await self.known_error(request, RouteNotFound(f"Nothing is served at {path}."))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            known = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}.")
            reply = await self.known_error(request, known)
            reply.headers["allow"] = allowed
            return reply
        return self._json(openai.render_error(InvalidRequest(error.detail)), error.status_code)

    async def client_left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=_NGINX_CLIENT_CLOSED_REQUEST)

    async def unknown_error(self, request: Request, error: Exception) -> Response:
        logger.error("Unexpected error at %s", request.url.path, exc_info=error)
        known = EmbedServeError("The server failed in a way it did not expect; its log says more.")
        return self._json(openai.render_error(known), 500)

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


def _loads(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = (
            " A text holds half a surrogate pair; send well-formed Unicode."
            if "surrogate" in str(error)
            else ""
        )
        raise InvalidRequest(f"The body isn't valid JSON: {error}.{hint}") from None


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
