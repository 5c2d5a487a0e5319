from typing import Any

import pytest

from serve_app.metrics import (
    BATCH_SECONDS,
    CACHED_TEXTS,
    REQUESTS,
    STAGE_SECONDS,
    TEXTS,
    TOKENS,
    Meter,
    Totals,
)
from serve_app.service.replica_stats import SingleReplica


def test_counts_come_together_until_they_are_drained() -> None:
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


def count(meter: Meter) -> None:
    """Two requests that got vectors, and three that did not."""
    for status in ("200", "422", "200", "500", "429"):
        meter.add(REQUESTS, 1, status)
    meter.add(TEXTS, 5)
    meter.add(CACHED_TEXTS, 2)
    meter.add(TOKENS, 40)
    meter.add(STAGE_SECONDS, 0.5, "total")
    meter.add(STAGE_SECONDS, 0.25, "infer")
    meter.add(BATCH_SECONDS, 9)


COUNTED = Totals(requests=5, failed=3, texts=5, cached_texts=2, tokens=40, seconds=0.5)


@pytest.mark.parametrize("drain", [False, True])
def test_totals_hold_what_was_drained_too(drain: bool) -> None:
    meter = Meter()
    assert meter.totals() == Totals()
    for _ in range(2):
        count(meter)
        if drain:
            meter.drain()
    assert meter.totals() == COUNTED.plus(COUNTED)


@pytest.mark.parametrize("drain", [False, True])
def test_totals_can_begin_anew_and_what_is_drained_goes_on(drain: bool) -> None:
    meter = Meter()
    drained: list[Any] = []
    for _ in range(2):
        count(meter)
        if drain:
            drained.append(meter.drain())
        meter.reset()
        assert meter.totals() == Totals()
    count(meter)
    assert meter.totals() == COUNTED
    drained.append(meter.drain())
    assert sum(counts[TEXTS, ()] for counts in drained) == 15


def test_totals_of_several_come_together() -> None:
    assert Totals(1, 2, 3, 4, 5, 6.0).plus(Totals(1, 1, 1, 1, 1, 1.0)) == Totals(2, 3, 4, 5, 6, 7.0)


async def test_a_fleet_of_one_tells_what_it_counts() -> None:
    meter = Meter()
    replica_stats = SingleReplica(meter)
    count(meter)
    assert await replica_stats.totals() == COUNTED
    await replica_stats.reset()
    assert await replica_stats.totals() == Totals()
    assert await replica_stats.prometheus_text() == ""
