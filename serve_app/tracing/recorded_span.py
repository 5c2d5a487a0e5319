"""`Span` by OpenTelemetry."""

import asyncio
import time
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.spans import NO_ATTRIBUTES, Attributes, Span, TraceContext

_PROPAGATOR = TraceContextTextMapPropagator()


class RecordedSpan:
    """A span that is exported when it has ended."""

    __slots__ = ("_span", "_tracer")

    is_recorded = True

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        """Wraps a span.

        Args:
            tracer: starts the spans below it.
            span: of this process or of another one.
        """
        self._tracer = tracer
        self._span = span

    @property
    def context(self) -> TraceContext:
        """Identifies the span in other processes."""
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers, trace.set_span_in_context(self._span))
        return TraceContext(headers["traceparent"], headers.get("tracestate", ""))

    def child(
        self,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        start_s: float | None = None,
        links: Iterable[Span] = (),
        is_call: bool = False,
    ) -> "RecordedSpan":
        """Starts a span below this one; see `Span.child`."""
        span = self._tracer.start_span(
            name,
            trace.set_span_in_context(self._span),
            trace.SpanKind.CLIENT if is_call else trace.SpanKind.INTERNAL,
            dict(attributes),
            [trace.Link(_span_context(other)) for other in links],
            None if start_s is None else _epoch_ns(start_s),
        )
        return RecordedSpan(self._tracer, span)

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        self._span.set_attributes(dict(attributes))

    def link(self, other: Span) -> None:
        """Adds a link to a span of another request."""
        self._span.add_link(_span_context(other))

    def fail(self, kind: str) -> None:
        """Marks the operation as failed, by a kind of errors."""
        self._span.set_attribute("error.type", kind)
        self._span.set_status(trace.StatusCode.ERROR)

    def end(self, *, end_s: float | None = None, error: BaseException | None = None) -> None:
        """Ends the span, unless it has ended; see `Span.end`."""
        if not self._span.is_recording():
            return
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("error.type", "cancelled")  # the client has left
        elif error is not None:
            self.fail(type(error).__name__)
        self._span.end(None if end_s is None else _epoch_ns(end_s))


def remote_context(context: TraceContext) -> trace.SpanContext:
    """Returns the context of a span of another process; an invalid one if it is malformed."""
    extracted = _PROPAGATOR.extract(context.headers())
    return trace.get_current_span(extracted).get_span_context()


def _span_context(span: Span) -> trace.SpanContext:
    if isinstance(span, RecordedSpan):
        return span._span.get_span_context()
    return remote_context(span.context)


def _epoch_ns(monotonic_s: float) -> int:
    return time.time_ns() - round(1e9 * (time.monotonic() - monotonic_s))
