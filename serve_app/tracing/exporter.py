"""Exports spans to a collector that may be slow or gone: counts what is lost, warns once."""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.util.re import parse_env_headers

from serve_app.config import TracingConfig
from serve_app.config.secret import read_secret
from serve_app.errors import ConfigurationError
from serve_app.meter import Meter
from serve_app.metrics import SPANS_DROPPED, SPANS_EXPORTED

logger = logging.getLogger(__name__)
#: It logs an error for each failed batch, and none would tell the service's own log.
logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

_HEADERS = re.compile(r"\s*[\w!#$%&'*+.^`|~-]+\s*=[^,]*(,\s*[\w!#$%&'*+.^`|~-]+\s*=[^,]*)*")


class CountingExporter(SpanExporter):
    """Exports spans, counts them, and warns at the first failure after a success.

    `export` runs in the thread of the span processor.
    """

    def __init__(self, exporter: SpanExporter, count: Callable[[int, str | None], None]) -> None:
        """Wraps an exporter.

        Args:
            exporter: sends spans, with a time limit.
            count: takes a number of spans, and why they were dropped; None: they were exported.
        """
        self.taken = 0  #: spans that have left the queue
        self._exporter = exporter
        self._count = count
        self._fails = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans; those that fail are dropped."""
        self.taken += len(spans)
        result = self._exporter.export(spans)
        succeeded = result is SpanExportResult.SUCCESS
        self._count(len(spans), None if succeeded else "failed")
        if not succeeded and not self._fails:
            logger.warning(
                "The collector of traces takes no spans. They are dropped until it does."
            )
        elif succeeded and self._fails:
            logger.info("The collector of traces takes spans again.")
        self._fails = not succeeded
        return result

    def shutdown(self) -> None:
        """Ends retries, and closes the connection."""
        self._exporter.shutdown()


class SpanQueue(BatchSpanProcessor):
    """Exports ended spans in a thread of its own. Spans that find the queue full are dropped.

    `on_end` runs in the event loop, and never waits.
    """

    def __init__(self, config: TracingConfig, meter: Meter) -> None:
        """Starts the thread.

        Args:
            config: the settings.
            meter: counts spans.

        Raises:
            ConfigurationError: `headers_env` can't be read.
        """
        self._meter = meter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._max_spans = config.max_queued_spans
        self._queued = 0
        exporter = OTLPSpanExporter(endpoint=_url(config), headers=_headers(config))
        self._exporter = CountingExporter(exporter, self._count)
        super().__init__(self._exporter, max_queue_size=config.max_queued_spans)

    def on_end(self, span: ReadableSpan) -> None:
        """Queues a span."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._queued - self._exporter.taken >= self._max_spans:
            self._meter.add(SPANS_DROPPED, 1, "full")
        else:
            self._queued += 1
            super().on_end(span)

    def _count(self, spans: int, dropped: str | None) -> None:
        """Counts spans in the event loop, to which the meter belongs."""
        metric, tags = (SPANS_EXPORTED, ()) if dropped is None else (SPANS_DROPPED, (dropped,))
        with suppress(RuntimeError):  # the loop has ended, and nobody reads the meter any more
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._meter.add, metric, spans, *tags)


def _url(config: TracingConfig) -> str | None:
    """Returns the URL that takes spans; None: that of the environment."""
    url = config.endpoint
    if url is None or url == "environment":
        return None
    return url if urlsplit(url).path not in ("", "/") else f"{url.rstrip('/')}/v1/traces"


def _headers(config: TracingConfig) -> Mapping[str, str] | None:
    """Returns the headers of `headers_env`; None: those of the environment.

    Raises:
        ConfigurationError: the variable isn't set, or isn't a list of headers.
    """
    if config.headers_env is None:
        return None
    text = read_secret(config.headers_env, "tracing.headers_env")
    if not _HEADERS.fullmatch(text):  # the library would log it
        raise ConfigurationError(
            f"The environment variable {config.headers_env} must be a list of headers such as "
            "`authorization=Bearer%20…,x-tenant=a`."
        )
    return parse_env_headers(text, liberal=True)
