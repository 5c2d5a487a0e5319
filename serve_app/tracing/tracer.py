"""The tracer of a process: headers of a request → its span → spans below it."""

import asyncio
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import __version__
from serve_app.config import TracingConfig
from serve_app.meter import Meter
from serve_app.spans import Attributes, Span, UnrecordedSpan
from serve_app.tracing.exporter import SpanQueue
from serve_app.tracing.recorded_span import RecordedSpan, remote_context
from serve_app.types import TextGroup

#: A batch has a link to each of its requests.
_MAX_LINKS = 1024
#: How long the last spans may take when the process stops.
_FLUSH_TIMEOUT_S = 2.0

_PROPAGATOR = TraceContextTextMapPropagator()


class Tracer:
    """Starts the spans of requests, samples and exports them. Belongs to one event loop."""

    def __init__(self, config: TracingConfig, meter: Meter, deployment: str) -> None:
        """Starts a thread that exports spans; see `open_tracer`."""
        self._queue = SpanQueue(config, meter)
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(config.sample_ratio),
            resource=_resource(config, deployment),
            span_limits=SpanLimits(max_links=_MAX_LINKS),
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        self._provider.add_span_processor(self._queue)
        self._tracer = self._provider.get_tracer("embedserve", __version__)

    def start(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """Starts the span of a request.

        Args:
            name: of the operation.
            headers: of the request; a valid `traceparent` makes the span part of its trace.
            attributes: what is known of the request.
        """
        span = self._tracer.start_span(
            name,
            _PROPAGATOR.extract(headers),
            trace.SpanKind.SERVER,
            dict(attributes),
        )
        recorded = RecordedSpan(self._tracer, span)
        return recorded if span.is_recording() else UnrecordedSpan(recorded.context)

    def receive(self, groups: Sequence[TextGroup]) -> tuple[TextGroup, ...]:
        """Returns groups of another process so that spans below theirs are recorded here."""
        return tuple(map(self._receive, groups))

    def _receive(self, group: TextGroup) -> TextGroup:
        span = group.span
        if span is None or span.is_recorded:
            return group
        context = remote_context(span.context)
        if not context.trace_flags.sampled:
            return group
        remote = RecordedSpan(self._tracer, trace.NonRecordingSpan(context))
        return replace(group, span=remote)

    async def close(self) -> None:
        """Exports the last spans within two seconds; those that take longer are dropped."""
        # A daemon, because a collector that doesn't answer must not keep the process alive.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _FLUSH_TIMEOUT_S)


def _resource(config: TracingConfig, deployment: str) -> Resource:
    defaults = Resource.create(
        {
            "service.name": "embedserve",
            "service.version": __version__,
            "service.instance.id": str(uuid4()),
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
            "embedserve.deployment": deployment,
        }
    )
    resource = defaults.merge(OTELResourceDetector().detect())
    if config.service_name is None:
        return resource
    return resource.merge(Resource({"service.name": config.service_name}))
