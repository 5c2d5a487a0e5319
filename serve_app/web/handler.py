"""The one road from a request to its reply, or to an error in the words of its dialect."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from serve_app.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmbedServeError,
    InvalidJSON,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    QuotaExceeded,
    RouteNotFound,
    UnsupportedMediaType,
)
from serve_app.metrics import CACHED_TEXTS, REQUESTS, STAGE_SECONDS, TEXTS, TOKENS
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedResult, Tier
from serve_app.web import headers
from serve_app.web.admission import Admission
from serve_app.web.dialects import openai
from serve_app.web.endpoint import Endpoint, ErrorRenderer, ViewRoute
from serve_app.web.limits import Gate, read_body

logger = logging.getLogger(__name__)

_NGINX_CLIENT_CLOSED_REQUEST = 499
_JSON, _RAW = "application/json", "application/octet-stream"


class _Answer(NamedTuple):
    """What is sent when all went well."""

    body: bytes
    headers: Mapping[str, str]
    media_type: str = _JSON
    status: int = 200


class RequestHandler:
    """Takes requests through; each step is the service's, the dialect's or the admission's own."""

    def __init__(
        self,
        service: EmbedService,
        admission: Admission,
        endpoints: Mapping[str, Sequence[Endpoint]],
        views: Sequence[ViewRoute] = (),
    ) -> None:
        self._service = service
        self._admission = admission
        self._gate = Gate()
        self._space = service.spec.space_id
        self.endpoints = endpoints
        #: How a path refuses before it is known what of it is asked.
        self._refuses = {view.path: view.render_error for view in views}
        self._refuses |= {path: found[0].render_error for path, found in endpoints.items()}

    async def answer(self, request: Request, candidates: Sequence[Endpoint]) -> Response:
        """Answers a request with a body, in the dialect that it is of."""
        given = headers.read(request.headers.raw)
        try:
            with self._gate.entered(self._service.settings.max_concurrent_requests):
                answer = await self._answer(request, given, candidates)
        except EmbedServeError as error:
            reply = self._refuse(request, error)
            self._service.meter.add(REQUESTS, 1, str(reply.status_code))
            return reply
        except ClientDisconnect:
            raise
        except Exception:  # a bug, answered by `unknown_error`
            self._service.meter.add(REQUESTS, 1, "500")
            raise
        return self._send(given, answer)

    async def _answer(
        self, request: Request, given: Mapping[str, str], candidates: Sequence[Endpoint]
    ) -> _Answer:
        started = time.perf_counter()
        settings = self._service.settings
        key = self._admission.identify(given)
        _require_json(given)
        body = await read_body(
            request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        fields = _fields(body)
        endpoint = request.state.endpoint = _chosen(candidates, fields)
        call = endpoint.parse(fields, self._service.spec)
        job = headers.apply_request_headers(call.job, given)
        result, told = await self._admission.run(key, job)
        if not isinstance(result, EmbedResult):
            content = call.render(result)
            embedded = [one for one in result if isinstance(one, EmbedResult)]
            self._count(embedded, time.perf_counter() - started)
            return _Answer(content, {**headers.of_cut(result), **told})
        raw = call.has_vectors and _RAW in given.get("accept", "")
        content = result.vectors.astype("<f4").tobytes() if raw else call.render(result)
        total_s = time.perf_counter() - started
        self._count([result], total_s)
        about = headers.of_result(result, total_s)
        about.update(endpoint.headers(result, total_s))
        about.update(told)
        if raw:
            about.update(headers.of_raw(result))
        return _Answer(content, about, _RAW if raw else _JSON)

    def _count(self, results: Sequence[EmbedResult], total_s: float) -> None:
        meter = self._service.meter
        meter.add(REQUESTS, 1, "200")
        meter.add(STAGE_SECONDS, total_s, headers.STAGES[-1])
        for result in results:
            n = len(result.tokens)
            meter.add(TEXTS, n)
            meter.add(CACHED_TEXTS, n - result.tiers.tolist().count(Tier.COMPUTED))
            meter.add(TOKENS, result.total_tokens)
            for stage, seconds in zip(headers.STAGES, result.timings, strict=False):
                if seconds:
                    meter.add(STAGE_SECONDS, seconds, stage)

    async def show(self, request: Request, view: ViewRoute) -> Response:
        """Answers a request that is nothing but its path."""
        request.state.endpoint = view
        if not view.public:
            self._admission.identify(request.headers)
        body, status, media_type = await view.show(self._service, request.path_params)
        return self._send(request.headers, _Answer(body, {}, media_type, status))

    def _refuse(self, request: Request, error: EmbedServeError) -> Response:
        """An error, in the words of the dialect that the path belongs to."""
        status, body, more = self._refusal_of(request)(error)
        about = dict(more)
        if isinstance(error, Overloaded):
            about["retry-after"] = str(error.retry_after_s)
        if isinstance(error, QuotaExceeded):
            about.update(error.headers)
        if isinstance(error, BodyTooLarge | BodyTimeout):
            about["connection"] = "close"  # the rest of the body is still on its way
        return self._send(request.headers, _Answer(body, about, _JSON if body else "", status))

    def _refusal_of(self, request: Request) -> ErrorRenderer:
        route: Endpoint | ViewRoute | None = getattr(request.state, "endpoint", None)
        if route is None:
            return self._refuses.get(request.scope["path"], openai.render_error)
        return route.render_error

    async def known_error(self, request: Request, error: Exception) -> Response:
        """For an error of the service, outside of `answer`."""
        assert isinstance(error, EmbedServeError), "Starlette hands over what it was asked to."
        return self._refuse(request, error)

    async def http_error(self, request: Request, error: Exception) -> Response:
        """For a path or a method that there is not."""
        assert isinstance(error, HTTPException), "Starlette hands over what it was asked to."
        path = request.url.path
        if error.status_code == 404:
            return self._refuse(request, RouteNotFound(f"Nothing is served at {path}."))
        if error.status_code == 405:
            allowed = _methods(request)
            known = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}.")
            reply = self._refuse(request, known)
            reply.headers["allow"] = allowed
            return reply
        return self._refuse(request, InvalidRequest(error.detail))

    async def client_left(self, request: Request, error: Exception) -> Response:
        """For a client that went away while it was sending."""
        return Response(status_code=_NGINX_CLIENT_CLOSED_REQUEST)

    async def unknown_error(self, request: Request, error: Exception) -> Response:
        """For a bug."""
        known = EmbedServeError("The server failed in a way it did not expect; its log says more.")
        name = request.headers.get("x-request-id", "no id")
        logger.error("Unexpected error at %s (%s)", request.url.path, name, exc_info=error)
        return self._refuse(request, known)

    def _send(self, given: Mapping[str, str], answer: _Answer) -> Response:
        return Response(
            answer.body,
            answer.status,
            {
                "x-embedding-space": self._space,
                **headers.trace(given),
                **answer.headers,
            },
            media_type=answer.media_type or None,
        )


def _methods(request: Request) -> str:
    """What the path takes; each of its routes knows its own methods only."""
    found = set[str]()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


def _require_json(given: Mapping[str, str]) -> None:
    media_type = given.get("content-type", "").partition(";")[0].strip().lower()
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
    raise InvalidRequest(f"The body has neither field of this route: {keys}.", candidates[0].key)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        hint = (
            " A text holds half a surrogate pair; send well-formed Unicode."
            if "surrogate" in str(error)
            else ""
        )
        raise InvalidJSON(f"The body isn't valid JSON: {error}.{hint}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return fields
