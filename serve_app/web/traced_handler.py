"""The request handler while tracing is on: each request that runs a job has a span."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response

from serve_app.service.catalog import Catalog
from serve_app.spans import Attributes, Span, current, current_span
from serve_app.web.admission import Admission
from serve_app.web.dialect import Dialect, DialectEndpoint
from serve_app.web.exchange import Exchange
from serve_app.web.handler import RequestHandler
from serve_app.web.limits import ConcurrencyLimiter
from serve_app.web.request_log import printable


class RequestTracer(Protocol):
    """Starts the spans of requests; see `tracing.tracer`."""

    def start(self, name: str, headers: Mapping[str, str]) -> Span | None:
        """Starts the span of a request with these headers; None: it isn't traced."""
        ...


class TracedHandler(RequestHandler):
    """A handler that traces requests. Views aren't traced: most of them are health checks."""

    def __init__(
        self,
        catalog: Catalog,
        admission: Admission,
        dialects: Sequence[Dialect],
        tracer: RequestTracer,
        limiter: ConcurrencyLimiter | None = None,
    ) -> None:
        """Binds the routes of the dialects to the models; see `RequestHandler`."""
        super().__init__(catalog, admission, dialects, limiter)
        self._tracer = tracer

    async def handle_endpoint(
        self, request: Request, candidates: Sequence[DialectEndpoint]
    ) -> Response:
        """Responds to a request; its span ends when the response is complete."""
        route = candidates[0].endpoint.route
        span = self._tracer.start(f"{request.method} {route}", request.headers)
        if span is None:
            return await super().handle_endpoint(request, candidates)
        request_id = request.headers.get("x-request-id", "-")
        span.set(
            {
                "http.request.method": request.method,
                "http.route": route,
                "embedserve.request_id": printable(request_id),
            }
        )
        with current(span):
            return await super().handle_endpoint(request, candidates)

    def _on_response(self, exchange: Exchange, status: int) -> None:
        super()._on_response(exchange, status)
        span = current_span.get()
        if span is not None and span.is_recorded:
            span.set(_attributes(exchange, status))
            if status >= 500:
                span.fail(str(status))


def _attributes(exchange: Exchange, status: int) -> Attributes:
    service, job, result = exchange.service, exchange.job, exchange.result
    return {
        "http.response.status_code": status,
        "embedserve.dialect": exchange.dialect.name,
        **({} if service is None else {"embedserve.model": service.spec.name}),
        **({} if job is None else {"embedserve.texts": len(job.inputs)}),
        **({} if result is None else {"embedserve.tokens": result.billed_tokens}),
    }
