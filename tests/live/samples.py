"""Samples of replicas for tests."""

from collections.abc import Mapping
from typing import Any

from serve_app.live.fleet_sample import FleetSample
from serve_app.live.replica_sample import ReplicaIdentity, ReplicaSample
from serve_app.meter import BUCKET
from serve_app.metrics import REQUEST_DURATION, Metric
from serve_app.scheduler.pool_sample import PoolSample


def replica(
    counts: Mapping[tuple[Metric, str], float] | None = None,
    *,
    name: str = "a",
    deployment: str = "Ingress",
    taken_s: float = 0.0,
    uptime_s: float = 1000.0,
    in_flight: int | None = 0,
    **fields: Any,
) -> ReplicaSample:
    """Returns a sample.

    Args:
        counts: values of counters; the text after the metric holds its tags, separated by commas.
        name: id of the replica.
        deployment: of the replica.
        taken_s: time of the sample.
        uptime_s: of the replica.
        in_flight: None for a replica that takes no requests.
        fields: the other fields of the sample.
    """
    return ReplicaSample(
        ReplicaIdentity(deployment, name, "192.0.2.1"),
        pid=7,
        taken_s=taken_s,
        uptime_s=uptime_s,
        memory_bytes=1000,
        counts={
            (metric.name, tuple(tags.split(","))): value
            for (metric, tags), value in (counts or {}).items()
        },
        in_flight=in_flight,
        **fields,
    )


def durations(
    lane: str, buckets: Mapping[str, float]
) -> Mapping[tuple[str, tuple[str, ...]], float]:
    """Returns the counts of a histogram of request durations, cumulated by upper bound."""
    return {
        (REQUEST_DURATION.name + BUCKET, (lane, "m", bound)): count
        for bound, count in buckets.items()
    }


def fleet(*replicas: ReplicaSample, **fields: Any) -> FleetSample:
    """Returns a sample of a service."""
    return FleetSample([*replicas], **fields)


def pool(
    queued: Mapping[Any, float] | None = None,
    *,
    busy_s: float | None = 0.0,
    oldest_s: Mapping[Any, float] | None = None,
    budget: Mapping[str, float] | None = None,
) -> PoolSample:
    """Returns the state of a pool of models."""
    return PoolSample(queued or {}, oldest_s or {}, budget or {}, busy_s)
