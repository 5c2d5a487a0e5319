"""The tracer of a process: headers of a request → its span → spans below it."""

import asyncio
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import random
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import __version__
from serve_app.config import TracingConfig
from serve_app.meter import Meter
from serve_app.spans import Span, UnrecordedSpan
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
        self._sample_ratio = config.sample_ratio
        self._queue = SpanQueue(config, meter)
        self._provider = TracerProvider(
            sampler=DEFAULT_ON,  # `start` has decided
            resource=_resource(config, deployment),
            span_limits=SpanLimits(max_links=_MAX_LINKS),
            shutdown_on_exit=False,  # it would wait for half a minute
        )
        self._provider.add_span_processor(self._queue)
        self._tracer = self._provider.get_tracer("embedserve", __version__)

    @property
    def is_enabled(self) -> bool:
        """False if `OTEL_SDK_DISABLED` is set."""
        return not isinstance(self._tracer, trace.NoOpTracer)

    def start(self, name: str, headers: Mapping[str, str]) -> Span | None:
        """Starts the span of a request; None: it isn't sampled, and part of no trace.

        Args:
            name: of the operation.
            headers: of the request. A valid `traceparent` makes the span part of that trace, and
                decides whether it is recorded.
        """
        parent = _PROPAGATOR.extract(headers)
        parent_span = trace.get_current_span(parent)
        context = parent_span.get_span_context()
        if not context.is_valid:
            # Before the library has made ids for a span that it drops: that takes tens of
            # microseconds.
            if random() >= self._sample_ratio:
                return None
        elif not context.trace_flags.sampled:
            return UnrecordedSpan(RecordedSpan(self._tracer, parent_span).context)
        span = self._tracer.start_span(name, parent, trace.SpanKind.SERVER)
        return RecordedSpan(self._tracer, span)

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
