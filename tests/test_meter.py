from typing import Any

import pytest

from serve_app.meter import Gauges, Meter
from serve_app.metrics import (
    BATCH_DURATION,
    CACHED_TEXTS,
    L2_UP,
    QUEUED_TOKENS,
    REQUEST_DURATION,
    REQUESTS,
    STAGE_SECONDS,
    TEXTS,
    TOKENS,
)
from serve_app.service.replica_stats import SingleReplica
from serve_app.totals import Totals


def test_drain_returns_the_counts_since_the_previous_drain() -> None:
    meter = Meter()
    meter.add(TEXTS, 3)
    meter.add(TEXTS, 2)
    meter.add(REQUESTS, 1, "200")
    meter.add(REQUESTS, 1, "429")
    drained = {(m.name, tags): amount for (m, tags), amount in meter.drain().items()}
    assert drained == {
        ("embedserve_texts", ()): 5,
        ("embedserve_requests", ("200",)): 1,
        ("embedserve_requests", ("429",)): 1,
    }
    assert meter.drain() == {}


def count_requests(meter: Meter) -> None:
    """Counts two successful requests and three failed ones."""
    for status in ("200", "422", "200", "500", "429"):
        meter.add(REQUESTS, 1, status)
    meter.add(TEXTS, 5)
    meter.add(CACHED_TEXTS, 2)
    meter.add(TOKENS, 40)
    meter.observe(REQUEST_DURATION, 0.5, "/embed", "bulk", "a")
    meter.add(STAGE_SECONDS, 0.25, "infer", "a")
    meter.observe(BATCH_DURATION, 9, "a")


COUNTED = Totals(requests=5, failed=3, texts=5, cached_texts=2, tokens=40, seconds=0.5)


@pytest.mark.parametrize("drain", [False, True])
def test_totals_include_drained_counts(drain: bool) -> None:
    meter = Meter()
    assert meter.totals() == Totals()
    for _ in range(2):
        count_requests(meter)
        if drain:
            meter.drain()
    assert meter.totals() == COUNTED.plus(COUNTED)


@pytest.mark.parametrize("drain", [False, True])
def test_reset_affects_totals_but_not_drain(drain: bool) -> None:
    meter = Meter()
    drained: list[Any] = []
    for _ in range(2):
        count_requests(meter)
        if drain:
            drained.append(meter.drain())
        meter.reset()
        assert meter.totals() == Totals()
    count_requests(meter)
    assert meter.totals() == COUNTED
    drained.append(meter.drain())
    assert sum(counts[TEXTS, ()] for counts in drained) == 15


def test_totals_add_and_subtract_by_field() -> None:
    total, one = Totals(2, 3, 4, 5, 6, 7.0), Totals(1, 1, 1, 1, 1, 1.0)
    assert Totals(1, 2, 3, 4, 5, 6.0).plus(one) == total
    assert total.minus(one) == Totals(1, 2, 3, 4, 5, 6.0)


async def test_a_single_replica_reports_its_own_totals() -> None:
    meter = Meter()
    replica_stats = SingleReplica(meter)
    count_requests(meter)
    assert await replica_stats.totals() == COUNTED
    await replica_stats.reset()
    assert await replica_stats.totals() == Totals()


async def test_the_metrics_of_a_single_replica_have_the_names_that_ray_exports() -> None:
    meter = Meter()
    meter.add(REQUESTS, 1, "200", "a")
    meter.add(REQUESTS, 1, "200", "a")
    gauges: Gauges = {QUEUED_TOKENS: {("bulk", "embed", "a"): 3.0}, L2_UP: 1.0}
    lines = (await SingleReplica(meter, lambda: gauges).prometheus_text()).splitlines()
    assert 'ray_embedserve_requests_total{model="a",status="200"} 2.0' in lines
    assert 'ray_embedserve_queued_tokens{lane="bulk",model="a",task="embed"} 3.0' in lines
    assert "ray_embedserve_l2_up 1.0" in lines
