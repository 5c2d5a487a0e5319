"""Traces by OpenTelemetry: spans → sampling → queue → OTLP exporter → collector.

Only this package imports OpenTelemetry, and only while tracing is on.
"""

from typing import TYPE_CHECKING

from serve_app.config import TracingConfig
from serve_app.errors import ConfigurationError
from serve_app.meter import Meter

if TYPE_CHECKING:
    from serve_app.tracing.tracer import Tracer


def open_tracer(config: TracingConfig, meter: Meter, deployment: str) -> "Tracer | None":
    """Returns the tracer of this process; None: tracing is off, or `OTEL_SDK_DISABLED` is set.

    Args:
        config: the settings.
        meter: counts spans.
        deployment: what the process is, in the attributes of its spans.

    Raises:
        ConfigurationError: the extra `otel` isn't installed, or `headers_env` can't be read.
    """
    if config.endpoint is None:
        return None
    check_tracing(config)
    from serve_app.tracing.tracer import Tracer

    tracer = Tracer(config, meter, deployment)
    return tracer if tracer.is_enabled else None


def check_tracing(config: TracingConfig) -> None:
    """Checks that spans can be exported, if tracing is on.

    Raises:
        ConfigurationError: the extra `otel` isn't installed.
    """
    if config.endpoint is None:
        return
    try:
        import serve_app.tracing.exporter  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`tracing.endpoint` needs the package {error.name!r}: `pip install "
            "'embedserve[otel]'`, or remove the setting."
        ) from None
