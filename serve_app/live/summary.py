"""Two samples of a service → a snapshot. Pure functions."""

from collections.abc import Iterable, Sequence
from typing import Any

from serve_app import __version__
from serve_app.access.entrance import KeyLevel
from serve_app.cost import NANO_USD
from serve_app.live.fleet_sample import FleetSample
from serve_app.live.interval import Interval
from serve_app.live.model_status import ModelStatus
from serve_app.live.replica_sample import ReplicaSample
from serve_app.live.snapshot import (
    BatchRates,
    CacheLevels,
    CostRates,
    DeploymentLive,
    KeyLive,
    LaneState,
    ModelLive,
    ReplicaLive,
    RequestRates,
    Snapshot,
)
from serve_app.meter import COUNT, SUM
from serve_app.metrics import (
    BATCH_SIZE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHED_TEXTS,
    COST_NANO_USD,
    KEY_TOKENS,
    PADDED_TOKENS,
    REQUEST_DURATION,
    REQUESTS,
    SAVED_NANO_USD,
    TEXT_LENGTH,
    TEXTS,
    TOKENS,
)
from serve_app.types import CacheState, Lane

#: A file of keys may list thousands.
_MAX_KEYS = 100
_ID_CHARS = 8
#: The worst state of the shared cache that a process reports is that of the service.
_CACHE_STATES = ("degraded", "unknown", "up", "off")


def summarize(
    before: FleetSample | None,
    after: FleetSample,
    models: Sequence[ModelStatus],
    *,
    topology: Any,
    unix: float,
) -> Snapshot:
    """Returns the snapshot of a service.

    Args:
        before: the sample that rates begin with; None: they aren't known.
        after: the sample of now.
        models: the served models.
        topology: of the service; see `Snapshot`.
        unix: time of `after`.
    """
    interval = Interval(before, after)
    http = [sample for sample in after.replicas if sample.takes_requests]
    return {
        "unix": round(unix, 3),
        "uptime_s": _rounded(max((s.uptime_s for s in http), default=0.0)),
        "topology": topology,
        "version": __version__,
        "requests": _requests(interval, http),
        "lanes": {
            "interactive": _lane("interactive", interval, after.replicas),
            "bulk": _lane("bulk", interval, after.replicas),
        },
        "texts_per_s": _known(interval.per_s(TEXTS)),
        "tokens_per_s": _known(interval.per_s(TOKENS)),
        "batches": _batches(interval, after.replicas),
        "cache": _cache(interval, after.replicas),
        "cost": _cost(interval, after.replicas, models),
        "models": [_model(model, interval, after.replicas) for model in models],
        "deployments": _deployments(interval, after),
        "replicas": _replicas(interval, after),
        "keys": _keys(interval, http),
    }


def _requests(interval: Interval, http: Sequence[ReplicaSample]) -> RequestRates:
    per_s, succeeded = interval.per_s(REQUESTS), interval.per_s(REQUESTS, "200")
    errors = None if per_s is None or succeeded is None else max(0.0, per_s - succeeded)
    return {
        "per_s": _known(per_s),
        "errors_per_s": _known(errors),
        "p50_ms": _ms(interval.quantile(0.5, REQUEST_DURATION)),
        "p99_ms": _ms(interval.quantile(0.99, REQUEST_DURATION)),
        "in_flight": sum(sample.in_flight or 0 for sample in http),
    }


def _lane(lane: Lane, interval: Interval, replicas: Iterable[ReplicaSample]) -> LaneState:
    pools = [sample.pool for sample in replicas if sample.pool is not None]
    ages = [pool.oldest_s[lane] for pool in pools if lane in pool.oldest_s]
    return {
        "queued_tokens": sum(
            tokens
            for pool in pools
            for (queue_lane, _), tokens in pool.queued_tokens.items()
            if queue_lane == lane
        ),
        "oldest_s": _known(max(ages, default=None)),
        "p50_ms": _ms(interval.quantile(0.5, REQUEST_DURATION, lane)),
        "p99_ms": _ms(interval.quantile(0.99, REQUEST_DURATION, lane)),
    }


def _batches(interval: Interval, replicas: Iterable[ReplicaSample]) -> BatchRates:
    batches, padded = interval.amount(BATCH_SIZE, suffix=COUNT), interval.amount(PADDED_TOKENS)
    tokens = interval.amount(TEXT_LENGTH, suffix=SUM)
    limits: dict[str, list[float]] = {}
    for sample in replicas:
        for model, limit in sample.pool.budget_tokens.items() if sample.pool else ():
            limits.setdefault(model, []).append(limit)
    room = sum(
        interval.amount(BATCH_SIZE, model, suffix=COUNT) * sum(values) / len(values)
        for model, values in limits.items()
    )
    return {
        "per_s": _known(interval.per_s(BATCH_SIZE, suffix=COUNT)),
        "texts_mean": _known(interval.ratio(interval.amount(BATCH_SIZE, suffix=SUM), batches)),
        "fill": _known(interval.ratio(padded, room)),
        "padding_share": _known(interval.ratio(padded - tokens, padded)),
    }


def _cache(interval: Interval, replicas: Sequence[ReplicaSample]) -> CacheLevels:
    # Behind an Ingress, CacheLookup looks up again what the Ingress has missed.
    looked_up = interval.amount(CACHE_HITS, http=True) + interval.amount(CACHE_MISSES, http=True)
    state = _worst([sample.cache for sample in replicas if sample.cache is not None])
    l1 = [sample.l1 for sample in replicas if sample.l1 is not None]
    return {
        "hit_ratio": _known(interval.ratio(interval.amount(CACHED_TEXTS), interval.amount(TEXTS))),
        "l1_hit_ratio": _known(interval.ratio(interval.amount(CACHE_HITS, "l1"), looked_up)),
        "l2_hit_ratio": _known(interval.ratio(interval.amount(CACHE_HITS, "l2"), looked_up)),
        "l1_bytes": sum(stats.bytes for stats in l1),
        "l1_entries": sum(stats.entries for stats in l1),
        "state": state.state,
        "reason": state.reason,
    }


def _worst(states: Sequence[CacheState]) -> CacheState:
    if not states:
        return CacheState("unknown", "No replica with a cache responds.")
    return min(states, key=lambda state: _CACHE_STATES.index(state.state))


def _cost(
    interval: Interval, replicas: Iterable[ReplicaSample], models: Iterable[ModelStatus]
) -> CostRates:
    if not any(model.is_priced for model in models):
        return {"usd_per_hour": None, "saved_usd_per_hour": None, "usd_total": None}
    total = sum(
        value
        for sample in replicas
        for (name, _), value in sample.counts.items()
        if name == COST_NANO_USD.name
    )
    return {
        "usd_per_hour": _usd_per_hour(interval.per_s(COST_NANO_USD)),
        "saved_usd_per_hour": _usd_per_hour(interval.per_s(SAVED_NANO_USD)),
        "usd_total": round(total / NANO_USD, 9),
    }


def _usd_per_hour(nano_usd_per_s: float | None) -> float | None:
    return None if nano_usd_per_s is None else round(nano_usd_per_s * 3600 / NANO_USD, 9)


def _model(model: ModelStatus, interval: Interval, replicas: Iterable[ReplicaSample]) -> ModelLive:
    return {
        "name": model.name,
        "task": model.task,
        "state": model.state,
        "engine": model.engine,
        "precision": model.precision,
        "requests_per_s": _known(interval.per_s(REQUESTS, None, model.name)),
        "queued_tokens": sum(
            tokens
            for sample in replicas
            if sample.pool is not None
            for (_, name), tokens in sample.pool.queued_tokens.items()
            if name == model.name
        ),
    }


def _deployments(interval: Interval, fleet: FleetSample) -> list[DeploymentLive]:
    records = {record["deployment"]: record for record in fleet.scaling}
    running: dict[str, list[ReplicaSample]] = {name: [] for name in fleet.targets}
    for sample in fleet.replicas:
        running.setdefault(sample.identity.deployment, []).append(sample)
    # One that doesn't respond runs nevertheless.
    hung = [s.identity.deployment for s in fleet.silent if s.state == "no_response"]
    result = list[DeploymentLive]()
    for name, samples in running.items():
        record = records.get(name)
        shares = [interval.busy_share(sample.identity) for sample in samples]
        known = [share for share in shares if share is not None]
        result.append(
            {
                "name": name,
                "replicas": len(samples) + hung.count(name),
                "target": record["target"] if record else fleet.targets.get(name),
                "decided_by": record["decided_by"] if record else None,
                "reason": record["reason"] if record else None,
                "busy_share": _known(sum(known) / len(known) if known else None),
            }
        )
    return result


def _replicas(interval: Interval, fleet: FleetSample) -> list[ReplicaLive]:
    responding: list[ReplicaLive] = [
        {
            "deployment": sample.identity.deployment,
            "id": sample.identity.replica[:_ID_CHARS],
            "node": sample.identity.node,
            "pid": sample.pid,
            "state": "running",
            "uptime_s": _rounded(sample.uptime_s),
            "busy_share": _known(interval.busy_share(sample.identity)),
            "memory_bytes": sample.memory_bytes,
            "queued_tokens": sample.pool and sum(sample.pool.queued_tokens.values()),
        }
        for sample in fleet.replicas
    ]
    silent: list[ReplicaLive] = [
        {
            "deployment": replica.identity.deployment,
            "id": replica.identity.replica[:_ID_CHARS],
            "node": replica.identity.node,
            "pid": replica.pid,
            "state": replica.state,
            "uptime_s": None,
            "busy_share": None,
            "memory_bytes": None,
            "queued_tokens": None,
        }
        for replica in fleet.silent
    ]
    order = {name: i for i, name in enumerate(fleet.targets)}
    return sorted(
        [*responding, *silent],
        key=lambda r: (order.get(r["deployment"], len(order)), r["deployment"], r["id"]),
    )


def _keys(interval: Interval, http: Iterable[ReplicaSample]) -> list[KeyLive]:
    levels: dict[str, KeyLevel] = {}
    for sample in http:
        for name, level in sample.keys.items():
            if name not in levels or level.age_s < levels[name].age_s:
                levels[name] = level
    keys = [_key(name, level, interval) for name, level in levels.items()]
    keys.sort(key=lambda key: (-(key["tokens_per_s"] or 0.0), key["name"]))
    return keys[:_MAX_KEYS]


def _key(name: str, level: KeyLevel, interval: Interval) -> KeyLive:
    return {
        "name": name,
        "tokens_per_s": _known(interval.per_s(KEY_TOKENS, name)),
        "limit": level.limit,
        "remaining": None if level.remaining is None else float(round(level.remaining)),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _rounded(value: float) -> float:
    return round(value, 3)


def _known(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
