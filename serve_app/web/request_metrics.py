"""Counts the requests that run a model, each once, whatever its outcome."""

import time

from serve_app.jobs import BatchJob, EmbedJob, QueuedJob, TokenVectorsJob
from serve_app.meter import ModelMeter
from serve_app.metrics import (
    CACHED_TEXTS,
    CANARY_REQUESTS,
    REQUEST_DURATION,
    REQUESTS,
    STAGE_SECONDS,
    TEXTS,
    TOKENS,
)
from serve_app.results import Result
from serve_app.service.catalog import Catalog
from serve_app.types import Lane, Tier
from serve_app.web.exchange import Exchange
from serve_app.web.response_headers import STAGES

#: Comparing with the member of the enumeration takes longer, and most requests are a cached text.
_COMPUTED = int(Tier.COMPUTED)


def count_request(exchange: Exchange, catalog: Catalog, status: int) -> None:
    """Adds a request whose response is ready to the metrics of its model.

    Args:
        exchange: the request.
        catalog: has the meter of requests that failed before they selected a model.
        status: of the response.
    """
    meter = exchange.meter(catalog)
    meter.add(REQUESTS, 1, str(status))
    if exchange.alias is not None and exchange.alias.canary is not None:
        meter.add(CANARY_REQUESTS, 1, exchange.alias.name)
    if exchange.read_s is not None:
        seconds = time.perf_counter() - exchange.read_s
        meter.observe(REQUEST_DURATION, seconds, exchange.route, _lane(exchange) or "")
    if status == 200 and exchange.result is not None:
        _count_result(meter, exchange.result)


def _count_result(meter: ModelMeter, result: Result) -> None:
    for part in result.parts:
        tokens, tiers = part.token_counts.tolist(), part.tiers.tolist()
        meter.add(TEXTS, len(tokens))
        meter.add(CACHED_TEXTS, len(tiers) - tiers.count(_COMPUTED))
        meter.add(TOKENS, sum(tokens))
        for stage, seconds in zip(STAGES, part.timings, strict=False):
            if seconds:
                meter.add(STAGE_SECONDS, seconds, stage)


def _lane(exchange: Exchange) -> Lane | None:
    """Returns the lane of a request; None: it queues no texts, or failed before it had one."""
    job, service, key = exchange.job, exchange.service, exchange.key
    if service is None:
        return None
    if type(job) is EmbedJob:  # most jobs are
        lane = job.lane
    elif isinstance(job, QueuedJob):
        lane = job.lane
        if isinstance(job, TokenVectorsJob) and service.spec.kind != "multi-vector":
            lane = "bulk"
    elif isinstance(job, BatchJob):
        lane = job.jobs[0].lane
    else:
        return None
    if key is not None and key.lane is not None:
        lane = key.lane
    return lane or service.settings.default_lane(len(job.inputs))
