"""The arithmetic of snapshots: two samples → rates, shares and quantiles."""

import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest

from serve_app.access.entrance import KeyLevel
from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.cache.report import MemoryStats
from serve_app.live.fleet_sample import FleetSample, SilentReplica
from serve_app.live.interval import Interval
from serve_app.live.model_status import ModelStatus
from serve_app.live.quantile import quantile
from serve_app.live.replica_sample import ReplicaIdentity
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.live.snapshot import Snapshot
from serve_app.live.summary import summarize
from serve_app.meter import COUNT, SUM, Meter
from serve_app.metrics import (
    BATCH_SIZE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHED_TEXTS,
    COST_NANO_USD,
    KEY_TOKENS,
    PADDED_TOKENS,
    PROCESS_CPU_SECONDS,
    REQUEST_DURATION,
    REQUESTS,
    SAVED_NANO_USD,
    TEXT_LENGTH,
    TEXTS,
    TOKENS,
)
from serve_app.types import CacheState
from tests.live.samples import durations, fleet, pool, replica

MODEL = ModelStatus(
    "m", "embed", is_priced=True, state="ready", engine="openvino", precision="fp32"
)


def snapshot(before: FleetSample | None, after: FleetSample, *models: ModelStatus) -> Snapshot:
    return summarize(before, after, models or [MODEL], topology="separate", unix=1.0)


def test_rates_are_differences_over_each_replicas_own_time() -> None:
    before = fleet(
        replica({(REQUESTS, "200,m"): 100, (TOKENS, "m"): 1000}, taken_s=10),
        replica({(REQUESTS, "200,m"): 500}, name="b", taken_s=9000),  # another machine's clock
    )
    after = fleet(
        replica(
            {(REQUESTS, "200,m"): 110, (REQUESTS, "429,m"): 4, (TOKENS, "m"): 1500}, taken_s=12
        ),
        replica({(REQUESTS, "200,m"): 501}, name="b", taken_s=9001),
    )
    seen = snapshot(before, after)
    assert seen["requests"]["per_s"] == 5 + 2 + 1
    assert seen["requests"]["errors_per_s"] == 2
    assert seen["tokens_per_s"] == 250
    assert seen["models"][0]["requests_per_s"] == 8


def test_without_an_earlier_sample_rates_are_unknown_and_levels_are_known() -> None:
    seen = snapshot(None, fleet(replica({(REQUESTS, "200,m"): 100}, in_flight=3)))
    assert seen["requests"] == {
        **{"per_s": None, "errors_per_s": None, "p50_ms": None, "p99_ms": None},
        "in_flight": 3,
    }
    assert seen["cache"]["hit_ratio"] is seen["batches"]["per_s"] is None
    assert seen["uptime_s"] == 1000


def test_a_replica_that_started_meanwhile_counts_from_zero_and_one_that_is_only_new_here_not() -> (
    None
):
    before = fleet(replica({(REQUESTS, "200,m"): 100}, taken_s=10))
    started = replica({(REQUESTS, "200,m"): 4}, name="b", uptime_s=1.5)
    silent_before = replica({(REQUESTS, "200,m"): 9000}, name="c")
    same = replica({(REQUESTS, "200,m"): 100}, taken_s=12)
    assert snapshot(before, fleet(same, started))["requests"]["per_s"] == 2
    assert snapshot(before, fleet(same, silent_before))["requests"]["per_s"] == 0


def test_a_replica_that_is_gone_makes_no_rate_negative() -> None:
    before = fleet(replica({(REQUESTS, "200,m"): 100}), replica({(REQUESTS, "200,m"): 7}, name="b"))
    after = fleet(replica({(REQUESTS, "200,m"): 101}, taken_s=1))
    assert snapshot(before, after)["requests"]["per_s"] == 1


def test_quantiles_are_those_of_the_requests_in_between() -> None:
    earlier = replica()._replace(
        counts=durations("interactive", {"0.01": 1000, "0.1": 1000, "+Inf": 1000})
    )
    later = replica(taken_s=1)._replace(
        counts={
            **durations("interactive", {"0.01": 1000, "0.1": 1010, "+Inf": 1010}),
            **durations("bulk", {"0.01": 0, "0.1": 0, "+Inf": 10}),
        }
    )
    seen = snapshot(fleet(earlier), fleet(later))
    assert seen["lanes"]["interactive"]["p50_ms"] == pytest.approx(55)
    assert seen["lanes"]["interactive"]["p99_ms"] == pytest.approx(99.1)
    assert seen["lanes"]["bulk"]["p99_ms"] == pytest.approx(100)  # above the last bound
    assert seen["requests"]["p50_ms"] == pytest.approx(100)
    assert seen["requests"]["p99_ms"] == pytest.approx(100)


def test_a_quantile_without_values_is_unknown() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {1.0: 0, math.inf: 0}) is None
    assert quantile(0.0, {1.0: 0, 2.0: 4, math.inf: 4}) == 1.0
    assert quantile(1.0, {1.0: 0, 2.0: 4, math.inf: 4}) == 2.0


def test_batches_have_a_fill_of_the_limit_of_their_model() -> None:
    counts: dict[Any, float] = {
        (BATCH_SIZE.name + COUNT, ("m",)): 4,
        (BATCH_SIZE.name + SUM, ("m",)): 10,
        (TEXT_LENGTH.name + SUM, ("m",)): 90,
        (PADDED_TOKENS.name, ("m",)): 100,
    }
    embedder = replica(
        deployment="Embedder", taken_s=2, in_flight=None, pool=pool(budget={"m": 50.0}, busy_s=1.5)
    )._replace(counts=counts)
    before = replica(deployment="Embedder", in_flight=None, pool=pool(busy_s=0.5))
    seen = snapshot(fleet(before), fleet(embedder))
    assert seen["batches"] == {"per_s": 2, "texts_mean": 2.5, "fill": 0.5, "padding_share": 0.1}
    assert seen["replicas"][0]["busy_share"] == seen["deployments"][0]["busy_share"] == 0.5


def test_cache_ratios_are_shares_of_the_texts_that_requests_look_up() -> None:
    """CacheLookup looks up again what the Ingress has missed."""
    ingress = replica(
        {
            **{(CACHE_HITS, "l1,m"): 50, (CACHE_MISSES, "m"): 50},
            **{(TEXTS, "m"): 100, (CACHED_TEXTS, "m"): 80},
        },
        taken_s=1,
        l1=MemoryStats(0, 0, 0, 10, 1000),
        cache=CacheState("off"),
    )
    lookup = replica(
        {(CACHE_HITS, "l1,m"): 10, (CACHE_HITS, "l2,m"): 20, (CACHE_MISSES, "m"): 20},
        name="b",
        deployment="CacheLookup",
        taken_s=1,
        in_flight=None,
        l1=MemoryStats(0, 0, 0, 5, 500),
        cache=CacheState("degraded", "down"),
    )
    before = fleet(replica(), replica(name="b", deployment="CacheLookup", in_flight=None))
    assert snapshot(before, fleet(ingress, lookup))["cache"] == {
        **{"hit_ratio": 0.8, "l1_hit_ratio": 0.6, "l2_hit_ratio": 0.2},
        **{"l1_bytes": 1500, "l1_entries": 15, "state": "degraded", "reason": "down"},
    }


def test_costs_are_extrapolated_to_an_hour_and_unknown_without_prices() -> None:
    before = replica({(COST_NANO_USD, "k,m"): 1_000_000_000})
    after = replica(
        {(COST_NANO_USD, "k,m"): 1_000_500_000, (SAVED_NANO_USD, "k,m"): 1000}, taken_s=2
    )
    assert snapshot(fleet(before), fleet(after))["cost"] == {
        **{"usd_per_hour": 0.9, "saved_usd_per_hour": 0.0018, "usd_total": 1.0005}
    }
    free = MODEL._replace(is_priced=False)
    assert snapshot(fleet(before), fleet(after), free)["cost"]["usd_total"] is None


def test_lanes_and_models_add_up_the_queues_of_all_replicas() -> None:
    first = pool(
        {("interactive", "m"): 5, ("bulk", "m"): 100}, oldest_s={"interactive": 0.5, "bulk": 2.0}
    )
    second = pool({("interactive", "m"): 7, ("bulk", "n"): 9}, oldest_s={"interactive": 0.1})
    other = ModelStatus("n", "rerank", is_priced=False)
    seen = snapshot(
        None,
        fleet(replica(pool=first, in_flight=None), replica(name="b", pool=second, in_flight=None)),
        MODEL,
        other,
    )
    assert seen["lanes"]["interactive"]["queued_tokens"] == 12
    assert seen["lanes"]["interactive"]["oldest_s"] == 0.5
    assert seen["lanes"]["bulk"]["queued_tokens"] == 109
    assert [(m["name"], m["queued_tokens"], m["state"]) for m in seen["models"]] == [
        ("m", 112, "ready"),
        ("n", 9, None),
    ]
    assert [r["queued_tokens"] for r in seen["replicas"]] == [105, 16]


def test_deployments_say_what_decides_and_silent_replicas_are_listed() -> None:
    record: Any = {
        "deployment": "Embedder",
        "target": 3,
        "decided_by": "arrivals",
        "reason": "2,100 tokens/s arrive",
    }
    scaling: list[ScalingRecord] = [record]
    seen = snapshot(
        None,
        fleet(
            replica(),
            replica(name="0123456789", deployment="Embedder", in_flight=None, pool=pool()),
            silent=[
                SilentReplica(ReplicaIdentity("Embedder", "hung", "192.0.2.2"), 8, "no_response"),
                SilentReplica(ReplicaIdentity("Embedder", "new", "192.0.2.2"), None, "starting"),
            ],
            targets={"Ingress": 1, "Embedder": 9, "Sleeper": 0},
            scaling=scaling,
        ),
    )
    shown = [(d["name"], d["replicas"], d["target"], d["reason"]) for d in seen["deployments"]]
    assert shown == [
        ("Ingress", 1, 1, None),
        ("Embedder", 2, 3, "2,100 tokens/s arrive"),
        ("Sleeper", 0, 0, None),
    ]
    assert [(r["id"], r["state"], r["pid"]) for r in seen["replicas"]] == [
        ("a", "running", 7),
        ("01234567", "running", 7),
        ("hung", "no_response", 8),
        ("new", "starting", None),
    ]


def test_the_latest_request_of_any_replica_tells_a_keys_quota() -> None:
    before = fleet(replica(), replica(name="b"))
    after = fleet(
        replica(
            {(KEY_TOKENS, "batch,m"): 20},
            taken_s=2,
            keys={"batch": KeyLevel(600, 12.4, 5.0), "idle": KeyLevel(None)},
        ),
        replica(
            name="b", taken_s=2, keys={"batch": KeyLevel(600, 99.0, 0.5), "idle": KeyLevel(None)}
        ),
    )
    assert snapshot(before, after)["keys"] == [
        {"name": "batch", "tokens_per_s": 10.0, "limit": 600, "remaining": 99.0},
        {"name": "idle", "tokens_per_s": 0.0, "limit": None, "remaining": None},
    ]


@dataclass
class Process:
    """A meter and its sampler."""

    meter: Meter
    sampler: ReplicaSampler


@pytest.fixture
def process() -> Process:
    meter = Meter()
    identity = ReplicaIdentity("standalone", "1", "host")
    return Process(meter, ReplicaSampler(identity, meter, in_flight=lambda: 2))


def test_a_sample_survives_the_way_to_another_process(process: Process) -> None:
    before = process.sampler.sample()
    model = process.meter.for_model("m")
    for seconds in (0.02, 0.04, 0.04):
        model.add(REQUESTS, 1, "200")
        model.observe(REQUEST_DURATION, seconds, "/embed", "interactive")
    received = pickle.loads(pickle.dumps(process.sampler.sample()))
    seen = snapshot(fleet(before), fleet(received))
    assert seen["requests"]["per_s"] is not None
    assert seen["requests"]["in_flight"] == 2
    assert 15 <= (seen["requests"]["p50_ms"] or 0) <= 50
    assert seen["replicas"][0]["memory_bytes"]


def test_a_sample_takes_nothing_from_the_exported_metrics(process: Process) -> None:
    process.meter.add(REQUESTS, 3, "200", "m")
    process.sampler.sample()
    assert process.meter.drain() == {(REQUESTS, ("200", "m")): 3}
    process.meter.add(REQUESTS, 1, "200", "m")
    assert process.sampler.sample().counts == {(REQUESTS.name, ("200", "m")): 4}


def test_a_metric_that_is_not_sampled_is_an_error_not_zero() -> None:
    interval = Interval(fleet(replica()), fleet(replica(taken_s=1.0)))
    with pytest.raises(ValueError, match="sampled_metrics"):
        interval.per_s(PROCESS_CPU_SECONDS)
