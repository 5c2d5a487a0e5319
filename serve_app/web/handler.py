"""Request handling: **request** → admission → body → endpoint → job → result → **response**.

An error becomes a response in the format of the request's dialect.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serve_app.errors import (
    BodyTimeout,
    BodyTooLarge,
    EmbedServeError,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    QuotaExceeded,
    RouteNotFound,
    Unauthorized,
    Unavailable,
    UnsupportedContentEncoding,
)
from serve_app.results import ComputedResult, EmbedResult
from serve_app.service.catalog import Catalog
from serve_app.web.accept import JSON, RAW, prefers_raw
from serve_app.web.admission import Admission
from serve_app.web.alternative import run_alternative
from serve_app.web.body import DEFAULT_TYPES, parse_object, require_json
from serve_app.web.content_encoding import (
    ACCEPTED_CODINGS,
    compress,
    parse_content_encoding,
    unpack,
)
from serve_app.web.dialect import (
    Dialect,
    DialectEndpoint,
    DialectView,
    all_views,
    endpoints_by_path,
)
from serve_app.web.endpoint import ViewRoute, ViewStream
from serve_app.web.event_stream import event_stream
from serve_app.web.exchange import Exchange
from serve_app.web.limits import ConcurrencyLimiter, LingeringResponse
from serve_app.web.request_headers import (
    apply_request_headers,
    decode_headers,
    request_timeout_s,
)
from serve_app.web.request_log import log_request
from serve_app.web.request_metrics import count_request
from serve_app.web.response_headers import (
    cost_headers,
    raw_vector_headers,
    replacement_headers,
    result_headers,
    trace_headers,
    truncation_headers,
)
from serve_app.web.schema.vector_encoding import serialize_rows
from serve_app.web.service_selection import model_of_client, select_service
from serve_app.web.unmatched_path import allowed_methods, matching_routes, not_found_message

logger = logging.getLogger(__name__)

_NGINX_CLIENT_CLOSED_REQUEST = 499
_BODY_GRACE_S = 0.1  #: time for the rest of a small body to arrive before an error is sent
_MAX_UNIDENTIFIED_BODY_BYTES = 65_536  #: of a body that is parsed without a valid key
_MAX_DISCARDED_BODIES = 8  #: bytes of a rejected body that are discarded, by `max_body_bytes`
_SHUTTING_DOWN = "The replica is shutting down; try again."


class _Reply(NamedTuple):
    """A response without the headers that every response has."""

    body: bytes
    headers: Mapping[str, str]
    media_type: str | None = JSON
    status: int = 200


class RequestHandler:
    """Handles the requests of all dialects, for all models."""

    def __init__(
        self,
        catalog: Catalog,
        admission: Admission,
        dialects: Sequence[Dialect],
        limiter: ConcurrencyLimiter | None = None,
    ) -> None:
        """Binds the routes of the dialects to the models.

        Args:
            catalog: the models.
            admission: checks API keys and their limits.
            dialects: the first one renders the errors of unknown paths.
            limiter: bounds the requests in progress; None: one that nobody else reads.
        """
        self._catalog = catalog
        self._admission = admission
        self._limiter = limiter or ConcurrencyLimiter()
        self.endpoints = endpoints_by_path(dialects)
        self.views = all_views(dialects)
        self._default_dialect = dialects[0]
        #: Renders the errors that occur before the body selects an endpoint.
        self._path_dialects = {
            **{view.path: dialect for dialect, view in self.views},
            **{path: candidates[0].dialect for path, candidates in self.endpoints.items()},
        }

    async def handle_endpoint(
        self, request: Request, candidates: Sequence[DialectEndpoint]
    ) -> Response:
        """Responds to a request with a body, from the candidate that the body selects."""
        exchange = Exchange(request, candidates[0].dialect, candidates[0].endpoint.route)
        response = await self._respond(exchange, self._run_endpoint(exchange, candidates))
        self._on_response(exchange, response.status_code)
        return response

    def _on_response(self, exchange: Exchange, status: int) -> None:
        if status != _NGINX_CLIENT_CLOSED_REQUEST:
            count_request(exchange, self._catalog, status)
        if exchange.alias is not None and status == 200:
            exchange.observe()
        if self._catalog.settings.request_log:
            log_request(exchange, status)

    async def handle_view(self, request: Request, route: DialectView) -> Response:
        """Responds to a request that runs no job."""
        exchange = Exchange(request, route.dialect)
        response = await self._respond(exchange, self._run_view(exchange, route.view))
        if self._catalog.settings.request_log and not route.view.public:
            log_request(exchange, response.status_code)
        return response

    async def _respond(self, exchange: Exchange, response: Awaitable[Response]) -> Response:
        """Returns the response, or that to the error that it raises."""
        try:
            return await response
        except EmbedServeError as error:
            return await self._error_response(exchange, error)
        except ClientDisconnect:  # for the access log: the client no longer reads
            return Response(status_code=_NGINX_CLIENT_CLOSED_REQUEST)
        except asyncio.CancelledError:
            if await exchange.request.is_disconnected():
                raise
            # The server's time to drain is over, and it would reply with a 500 in plain text.
            return await self._error_response(exchange, Unavailable(_SHUTTING_DOWN, 1))
        except Exception as error:
            return await self._unexpected_error_response(exchange, error)

    async def _run_endpoint(
        self, exchange: Exchange, candidates: Sequence[DialectEndpoint]
    ) -> Response:
        headers = decode_headers(exchange.request.headers.raw)
        with self._limiter.slot(self._catalog.settings.max_concurrent_requests):
            reply = await self._build_reply(exchange, headers, candidates)
        response = self._response(exchange, headers, reply)
        min_bytes = self._catalog.settings.compress_min_bytes
        if reply.media_type == RAW or len(reply.body) < min_bytes:
            return response
        return await self._compressed(response, headers)

    async def _run_view(self, exchange: Exchange, view: ViewRoute) -> Response:
        headers = decode_headers(exchange.request.headers.raw)
        if not view.public:
            exchange.key = self._admission.identify(headers)
        request = exchange.request
        arguments: Mapping[str, Any] = {**request.query_params, **request.path_params}
        if view.fields:
            arguments = await self._read_fields(exchange, headers)
        if view.by_client:
            arguments = model_of_client(self._catalog, exchange, headers, arguments)
        account = self._admission.account(exchange.key)
        reply = await view.run(self._catalog, account, arguments)
        if isinstance(reply, ViewStream):
            return event_stream(reply, request.method, self._headers(exchange, headers))
        body, status = reply
        response = self._response(exchange, headers, _Reply(body, {}, view.media_type, status))
        return await self._compressed(response, headers)

    async def _build_reply(
        self,
        exchange: Exchange,
        headers: Mapping[str, str],
        candidates: Sequence[DialectEndpoint],
    ) -> _Reply:
        try:
            key = exchange.key = self._admission.identify(headers)
        except Unauthorized:
            await _select_dialect(exchange, candidates)
            raise
        fields = await self._read_fields(exchange, headers)
        exchange.dialect, endpoint = _select_endpoint(candidates, fields)
        name = endpoint.model_name(fields)
        if endpoint.variants:
            exchange.service = self._catalog.resolve(name)
            endpoint = endpoint.for_model(exchange.service.spec, fields)
        task = endpoint.default_task(fields) if name is None else None
        service = select_service(self._catalog, exchange, headers, name, task)
        parsed = endpoint.parse(fields, service.spec)
        job = exchange.job = apply_request_headers(parsed.job, headers)
        timeout_s = request_timeout_s(headers)
        try:
            result, extra_headers = await self._admission.run(key, service, job, timeout_s)
        except EmbedServeError as error:
            service, parsed, job, result, extra_headers = await run_alternative(
                self._catalog, self._admission, exchange, endpoint, fields, headers, error
            )
        exchange.result = result
        if result.cost is not None:
            extra_headers = {**extra_headers, **cost_headers(result.cost)}
        if self._catalog.settings.invalid_text == "replace":
            extra_headers = {**extra_headers, **replacement_headers(job.inputs)}
        if not isinstance(result, ComputedResult):
            body = parsed.render(result)
            return _Reply(body, {**truncation_headers(result.truncated), **extra_headers})
        vector_headers: Mapping[str, str] = {}
        content: bytes | None = None
        if parsed.has_vectors and isinstance(result, EmbedResult):
            if prefers_raw(headers.get("accept", "")):
                content = result.vectors.astype("<f4").tobytes()
                vector_headers = raw_vector_headers(result)
            elif parsed.has_floats:
                result = await serialize_rows(result)
            vector_headers = {"vary": "accept", **vector_headers}
        media_type = JSON if content is None else RAW
        content = parsed.render(result) if content is None else content
        total_s = time.perf_counter() - exchange.started_s
        reply_headers = result_headers(result, total_s)
        reply_headers.update(endpoint.headers(result, total_s))
        reply_headers.update(extra_headers)
        reply_headers.update(vector_headers)
        return _Reply(content, reply_headers, media_type)

    async def _read_fields(self, exchange: Exchange, headers: Mapping[str, str]) -> dict[str, Any]:
        """Returns the fields of the body, and the parameters of the path, which take precedence."""
        settings = self._catalog.settings
        content_type = headers.get("content-type", "")
        if content_type != JSON and not (
            content_type in DEFAULT_TYPES
            and "origin" not in headers
            and exchange.dialect.json_type_optional
        ):
            require_json(content_type)
        content_encoding = headers.get("content-encoding")
        codings = parse_content_encoding(content_encoding) if content_encoding else ()
        body = await exchange.body.read(
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
            declared=headers.get("content-length", ""),
        )
        exchange.read_s = time.perf_counter()
        if codings:
            body = await unpack(body, codings, settings.max_body_bytes)
        fields = parse_object(body, replace_surrogates=settings.invalid_text == "replace")
        path_params = exchange.request.path_params
        return {**fields, **path_params} if path_params else fields

    async def handle_http_exception(self, request: Request, error: Exception) -> Response:
        """Responds to an unknown path (404) or method (405)."""
        assert isinstance(error, HTTPException), "Registered for HTTPException only."
        exchange = Exchange(request, self._dialect_of_path(request))
        if self._catalog.settings.request_log:
            log_request(exchange, error.status_code)
        path = request.url.path
        if error.status_code == 404:
            not_found = RouteNotFound(not_found_message(request))
            return await self._error_response(exchange, not_found)
        if error.status_code == 405:
            allowed = allowed_methods(request)
            not_allowed = MethodNotAllowed(f"{path} takes {allowed}, not {request.method}.")
            response = await self._error_response(exchange, not_allowed)
            response.headers["allow"] = allowed
            return response
        return await self._error_response(exchange, InvalidRequest(error.detail))

    async def handle_unexpected_error(self, request: Request, error: Exception) -> Response:
        """Logs a bug outside the routes of dialects; responds with 500."""
        exchange = Exchange(request, self._dialect_of_path(request))
        return await self._unexpected_error_response(exchange, error)

    async def _unexpected_error_response(self, exchange: Exchange, error: Exception) -> Response:
        request = exchange.request
        request_id = request.headers.get("x-request-id", "no id")
        logger.error("Unexpected error at %s (%s)", request.url.path, request_id, exc_info=error)
        message = "The server failed in a way it did not expect; its log says more."
        return await self._error_response(exchange, EmbedServeError(message))

    async def _error_response(self, exchange: Exchange, error: EmbedServeError) -> Response:
        status, body, dialect_headers = exchange.dialect.render_error(error)
        headers = dict(dialect_headers)
        if isinstance(error, Overloaded | Unavailable) and error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
        if isinstance(error, QuotaExceeded):
            headers.update(error.headers)
        if isinstance(error, Unauthorized):
            headers.setdefault("www-authenticate", error.challenge)
        if isinstance(error, UnsupportedContentEncoding):
            headers["accept-encoding"] = ACCEPTED_CODINGS
        reply = _Reply(body, headers, JSON if body else None, status)
        response = self._response(exchange, exchange.request.headers, reply)
        if await self._is_received(exchange, error):
            return response
        settings = self._catalog.settings
        return LingeringResponse(
            response,
            exchange.body,
            max_bytes=_MAX_DISCARDED_BODIES * settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
        )

    async def _is_received(self, exchange: Exchange, error: EmbedServeError) -> bool:
        """Returns whether the body of a rejected request is complete, after a short wait.

        A client that sends `Expect: 100-continue` waits for the status before it sends the body.
        """
        if isinstance(error, BodyTooLarge | BodyTimeout) or "expect" in exchange.request.headers:
            return False
        max_bytes = self._catalog.settings.max_body_bytes
        return await exchange.body.discard(max_bytes=max_bytes, timeout_s=_BODY_GRACE_S)

    def _dialect_of_path(self, request: Request) -> Dialect:
        paths = (route.path for route in matching_routes(request))
        dialects = (self._path_dialects[path] for path in paths if path in self._path_dialects)
        return next(dialects, self._default_dialect)

    async def _compressed(self, response: Response, headers: Mapping[str, str]) -> Response:
        min_bytes = self._catalog.settings.compress_min_bytes
        return await compress(response, headers.get("accept-encoding", ""), min_bytes)

    def _response(
        self, exchange: Exchange, request_headers: Mapping[str, str], reply: _Reply
    ) -> Response:
        headers = {**self._headers(exchange, request_headers), **reply.headers}
        return Response(reply.body, reply.status, headers, media_type=reply.media_type)

    def _headers(self, exchange: Exchange, request_headers: Mapping[str, str]) -> Mapping[str, str]:
        """Returns the headers that every response has."""
        return {
            **exchange.space_header(self._catalog),
            **trace_headers(request_headers),
            **self._admission.budget_headers(exchange.key),
        }


async def _select_dialect(exchange: Exchange, candidates: Sequence[DialectEndpoint]) -> None:
    """Selects the dialect of a request without a valid key, if its body arrives at once."""
    headers = exchange.request.headers
    if len(candidates) == 1 or "expect" in headers:
        return
    with suppress(EmbedServeError):  # the path's first dialect responds
        body = await exchange.body.read(
            max_bytes=_MAX_UNIDENTIFIED_BODY_BYTES,
            timeout_s=_BODY_GRACE_S,
            declared=headers.get("content-length", ""),
        )
        exchange.dialect, _ = _select_endpoint(candidates, parse_object(body))


def _select_endpoint(
    candidates: Sequence[DialectEndpoint], fields: Mapping[str, Any]
) -> DialectEndpoint:
    """Returns the only candidate, or the first whose deciding key is among the fields."""
    if len(candidates) == 1:
        return candidates[0]
    for candidate in candidates:
        if candidate.endpoint.deciding_key in fields:
            return candidate
    keys = [candidate.endpoint.deciding_key for candidate in candidates]
    raise InvalidRequest(
        f"The body has neither field of this route: {' or '.join(f'`{key}`' for key in keys)}.",
        keys[0],
    )
