"""Settings of tracing: where spans go, and of how many requests."""

from pydantic import Field

from serve_app.config.section import Section


class TracingConfig(Section):
    """Traces of requests, exported by OpenTelemetry's protocol over HTTP."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^(environment|https?://[^\s@]+)$",
        description="Collector that takes spans by OTLP over HTTP, such as "
        "`http://127.0.0.1:4318`; `/v1/traces` is added if the URL has no path. `environment`: "
        "that of `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT`, where the "
        "replica runs. Needs `pip install 'embedserve[otel]'`. null: no traces.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the requests that are traced. The `traceparent` of a client decides "
        "for its request: a sampled trace is continued, whatever the ratio is.",
    )
    service_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Name of the service in traces. null: `OTEL_SERVICE_NAME` of the environment, "
        "or else `embedserve`.",
    )
    headers_env: str | None = Field(
        default=None,
        min_length=1,
        description="Name of an environment variable with the headers that the collector wants, "
        "such as `authorization=Bearer%20…,x-tenant=a`. null: `OTEL_EXPORTER_OTLP_HEADERS`.",
    )
    max_queued_spans: int = Field(
        default=8192,
        ge=512,
        le=1_048_576,
        description="Spans that a process keeps for the collector, with 3 kB for each. Further "
        "ones are dropped: see `embedserve_spans_dropped`.",
    )
