"""Spans of traces, without a tracing library: what the rooms below the handler record.

The handler makes the span of a request the current one. Groups of texts carry it to the cache,
across handles and into batches, which add spans below it. `tracing` implements `Span`; requests
have none while tracing is off.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, Self

#: Numbers, names and states of a span; never a text or a key.
Attributes = Mapping[str, str | int | float]

NO_ATTRIBUTES: Attributes = {}


class TraceContext(NamedTuple):
    """What identifies a span in other processes: the headers of W3C Trace Context."""

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits."""
        return self.traceparent.split("-")[1]

    @property
    def span_id(self) -> str:
        """The id of the span, 16 hexadecimal digits."""
        return self.traceparent.split("-")[2]

    def headers(self) -> dict[str, str]:
        """Returns the headers that make a call part of the trace."""
        headers = {"traceparent": self.traceparent}
        return {**headers, "tracestate": self.tracestate} if self.tracestate else headers


class Span(Protocol):
    """An operation in a trace."""

    @property
    def context(self) -> TraceContext:
        """Identifies the span in other processes."""
        ...

    @property
    def is_recorded(self) -> bool:
        """Whether the span is exported; else it only passes its context on."""
        ...

    def child(
        self,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        start_s: float | None = None,
        links: Iterable["Span"] = (),
        is_call: bool = False,
    ) -> "Span":
        """Starts a span below this one.

        Args:
            name: of the operation.
            attributes: what is known of it.
            start_s: when it started, by `time.monotonic`; None: now.
            links: spans of other requests that the operation is done for.
            is_call: whether another process does it.
        """
        ...

    def set(self, attributes: Attributes) -> None:
        """Adds attributes."""
        ...

    def link(self, other: "Span") -> None:
        """Adds a link to a span of another request."""
        ...

    def fail(self, kind: str) -> None:
        """Marks the operation as failed, by a kind of errors."""
        ...

    def end(self, *, end_s: float | None = None, error: BaseException | None = None) -> None:
        """Ends the span; only the first call has an effect.

        Args:
            end_s: when the operation ended, by `time.monotonic`; None: now.
            error: why it failed. Its type is recorded, but not its message, which may quote a text.
        """
        ...


class UnrecordedSpan:
    """The span of a request that isn't sampled, or of another process: passes its context on."""

    __slots__ = ("context",)

    is_recorded = False

    def __init__(self, context: TraceContext) -> None:
        self.context = context

    def child(
        self,
        name: str,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        start_s: float | None = None,
        links: Iterable[Span] = (),
        is_call: bool = False,
    ) -> Self:
        """Returns this span."""
        return self

    def set(self, attributes: Attributes) -> None:
        """Does nothing."""

    def link(self, other: Span) -> None:
        """Does nothing."""

    def fail(self, kind: str) -> None:
        """Does nothing."""

    def end(self, *, end_s: float | None = None, error: BaseException | None = None) -> None:
        """Does nothing."""


#: The span of the request, or of the call, that the current task works on.
current_span: ContextVar[Span | None] = ContextVar("current_span", default=None)


@contextmanager
def ending(span: Span) -> Iterator[Span]:
    """Ends a span at the end of the block, with the exception that leaves it."""
    try:
        yield span
    except BaseException as error:
        span.end(error=error)
        raise
    span.end()


@contextmanager
def current(span: Span) -> Iterator[Span]:
    """Makes a span the current one until the end of the block, and ends it."""
    token = current_span.set(span)
    try:
        with ending(span):
            yield span
    finally:
        current_span.reset(token)


def trace_headers() -> dict[str, str]:
    """Returns the headers that make an HTTP call part of the current trace; none without one."""
    span = current_span.get()
    return {} if span is None else span.context.headers()
