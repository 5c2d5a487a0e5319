"""A collector on a free port that takes spans by OTLP over HTTP, and tests read them."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

#: Far more than a test needs.
_LIMIT_S = 60
#: Makes exporters send spans soon.
EXPORT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as the collector got it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str  #: "": none
    kind: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    links: frozenset[str]  #: ids of spans
    failed: bool
    status_message: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


class OTLPReceiver:
    """The spans that have arrived."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.spans: list[ReceivedSpan] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()

    def wait_for(self, *names: str, trace_id: str | None = None) -> None:
        """Waits until spans with all of these names have arrived; a name may occur twice.

        A process sends its spans in the order in which they end. Those of different processes
        arrive in any order: name the last span of each process.

        Args:
            names: the names of spans.
            trace_id: the trace of the spans; None: any.
        """
        deadline = time.monotonic() + _LIMIT_S
        while True:
            spans = [*self.spans] if trace_id is None else self.trace(trace_id)
            missing = Counter(names) - Counter(span.name for span in spans)
            if not missing:
                return
            assert time.monotonic() < deadline, (missing, [span.name for span in spans])
            time.sleep(0.02)

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """Returns the spans of a trace by their start."""
        spans = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(spans, key=lambda span: span.start_s)

    def one(self, name: str, trace_id: str) -> ReceivedSpan:
        (span,) = (span for span in self.trace(trace_id) if span.name == name)
        return span

    def tree(self, trace_id: str) -> set[tuple[str, str]]:
        """Returns the names of each span and of its parent; "": the parent isn't in the trace."""
        names = {span.span_id: span.name for span in self.trace(trace_id)}
        return {(names.get(s.parent_id, ""), s.name) for s in self.trace(trace_id)}


@contextmanager
def otlp_receiver() -> Iterator[OTLPReceiver]:
    """Runs a collector until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.paths.append(self.path)
            receiver.bodies.append(body)
            receiver.headers.append({k.lower(): v for k, v in self.headers.items()})
            receiver.answers.wait(_LIMIT_S)
            if receiver.status == 200:
                receiver.spans += [*_spans(ExportTraceServiceRequest.FromString(body))]
            reply = ExportTraceServiceResponse().SerializeToString()
            self.send_response(receiver.status)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = OTLPReceiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    _attributes(span.attributes),
                    resource,
                    frozenset(link.span_id.hex() for link in span.links),
                    span.status.code == Status.STATUS_CODE_ERROR,
                    span.status.message,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}
