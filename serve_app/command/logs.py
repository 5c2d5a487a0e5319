"""The log of a service: its level and its format, `text` or `json`, as on Ray."""

import argparse
import json
import logging
from collections.abc import Mapping
from typing import Any

from serve_app.trace_ids import TraceIds

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_ENCODINGS = {"text": "TEXT", "json": "JSON"}
#: Attributes that every record has, so that the others are fields of the message.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(levelname)s %(asctime)s %(name)s -- %(message)s")


class _JSONFormatter(logging.Formatter):
    """Writes the keys that Ray's formatter writes."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "asctime": self.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
            "process": record.process,
            "timestamp_ns": round(1e9 * record.created),
        }
        if record.exc_info:
            fields["exc_text"] = self.formatException(record.exc_info)
        own = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return json.dumps(fields | own, default=str)


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-level` and `--log-format`."""
    parser.add_argument(
        "--log-level",
        choices=_LEVELS,
        type=str.upper,
        help="least severe messages in the log (default: `logging_config.log_level` of the file)",
    )
    parser.add_argument(
        "--log-format",
        choices=tuple(_ENCODINGS),
        help="format of the log (default: `logging_config.encoding` of the file). A standalone "
        "service writes it to standard error, a service on Ray to files",
    )


def apply_log_arguments(config: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns a configuration with the log's level and format of the command line."""
    changes = {
        "log_level": arguments.log_level,
        "encoding": arguments.log_format and _ENCODINGS[arguments.log_format],
    }
    given = {name: value for name, value in changes.items() if value is not None}
    return {**config, "logging_config": {**(config.get("logging_config") or {}), **given}}


def configure_log(config: Mapping[str, Any]) -> None:
    """Makes this process log as the file's `logging_config` says, to standard error."""
    settings = config.get("logging_config") or {}
    handler = logging.StreamHandler()
    encoding = str(settings.get("encoding", "TEXT")).upper()
    handler.addFilter(TraceIds())
    handler.setFormatter(_JSONFormatter() if encoding == "JSON" else _TextFormatter())
    logging.basicConfig(level=settings.get("log_level", "WARNING"), handlers=[handler])
