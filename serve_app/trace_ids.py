"""The ids of the current trace in log records."""

import logging

from serve_app.spans import current_span


class TraceIds(logging.Filter):
    """Adds `trace_id` and `span_id` to records of a request that has a span; passes all records.

    The names are those of OpenTelemetry's log records.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True."""
        span = current_span.get()
        if span is not None:
            record.trace_id, record.span_id = span.context.trace_id, span.context.span_id
        return True
