"""The log of a replica: what `serve_app` logs goes to Ray Serve's logger.

Serve writes its own logger's records to the replica's log file, in the format of `logging_config`.
Records of other loggers would reach standard error, which Serve logs at INFO, whatever their level.
"""

import logging

from serve_app.trace_ids import TraceIds

_SERVE_LOGGER = logging.getLogger("ray.serve")


class _ServeHandler(logging.Handler):
    """Passes records on. Serve's level applies to all but those of the request log."""

    def emit(self, record: logging.LogRecord) -> None:
        if _SERVE_LOGGER.isEnabledFor(record.levelno) or record.name == "serve_app.requests":
            _SERVE_LOGGER.handle(record)


def log_to_serve() -> None:
    """Passes the log of `serve_app` in this process to Ray Serve's logger."""
    logger = logging.getLogger("serve_app")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if not any(isinstance(handler, _ServeHandler) for handler in logger.handlers):
        handler = _ServeHandler()
        handler.addFilter(TraceIds())
        logger.addHandler(handler)
