"""What a replica reports of its callers."""

import pytest

from serve_app.scheduler.caller_load import CallerLoad
from serve_app.scheduler.caller_loads import CallerLoads
from serve_app.scheduler.replica_load import ReplicaLoad
from tests.scheduler.fake_clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def callers(clock: FakeClock) -> CallerLoads:
    return CallerLoads(clock)


def test_it_adds_up_what_callers_hold(callers: CallerLoads, clock: FakeClock) -> None:
    callers.record(CallerLoad("a", 10, 100, 0.2))
    callers.record(CallerLoad("a", 20, 200, 0.5))
    callers.record(CallerLoad("b", 1, 0, 0.1))
    report = callers.add_to(ReplicaLoad(busy_share=0.5))
    assert report == ReplicaLoad(
        busy_share=0.5, held_interactive_tokens=21, held_bulk_tokens=200, oldest_held_s=0.5
    )


def test_the_rate_of_arrivals_comes_from_the_counters(
    callers: CallerLoads, clock: FakeClock
) -> None:
    for second in range(3):
        clock.now_s = second
        callers.record(CallerLoad("a", 0, 0, 0, 5_000 + 300 * second, 40 * second))
        callers.record(CallerLoad("b", 0, 0, 0, 100 * second, 0))
        report = callers.add_to(ReplicaLoad())
    assert report.arrived_interactive_tokens_per_s == pytest.approx(400)
    assert report.arrived_bulk_tokens_per_s == pytest.approx(40)


def test_rare_calls_give_the_same_rate_as_frequent_ones(
    callers: CallerLoads, clock: FakeClock
) -> None:
    rates = []
    for second in range(12):
        clock.now_s = second
        if second % 3 == 0:
            callers.record(CallerLoad("a", arrived_interactive_tokens=100 * second))
        rates.append(callers.add_to(ReplicaLoad()).arrived_interactive_tokens_per_s)
    assert rates[3:] == [pytest.approx(100)] * 9


def test_calls_in_quick_succession_are_no_spike(callers: CallerLoads, clock: FakeClock) -> None:
    callers.record(CallerLoad("a"))
    clock.now_s = 1
    callers.record(CallerLoad("a", arrived_interactive_tokens=100))
    rates = [callers.add_to(ReplicaLoad()).arrived_interactive_tokens_per_s]
    clock.now_s = 1.001
    callers.record(CallerLoad("a", arrived_interactive_tokens=200))
    rates.append(callers.add_to(ReplicaLoad()).arrived_interactive_tokens_per_s)
    assert rates == [pytest.approx(100)] * 2


def test_the_rate_of_a_caller_that_falls_silent_falls(
    callers: CallerLoads, clock: FakeClock
) -> None:
    callers.record(CallerLoad("a"))
    clock.now_s = 1
    callers.record(CallerLoad("a", 7, arrived_interactive_tokens=100))
    rates = []
    for clock.now_s in (1.0, 3.0, 5.0):
        rates.append(callers.add_to(ReplicaLoad()).arrived_interactive_tokens_per_s)
    assert rates == [pytest.approx(rate) for rate in (100, 50, 25)]
    clock.now_s = 11.1
    assert callers.add_to(ReplicaLoad()) == ReplicaLoad()


def test_calls_that_overtake_each_other_are_counted_once(
    callers: CallerLoads, clock: FakeClock
) -> None:
    callers.record(CallerLoad("a"))
    clock.now_s = 1
    for tokens in (100, 90, 200, 110, 190):
        callers.record(CallerLoad("a", tokens, arrived_interactive_tokens=tokens))
    report = callers.add_to(ReplicaLoad())
    assert report.arrived_interactive_tokens_per_s == pytest.approx(200)
    assert report.held_interactive_tokens == 200


def test_a_caller_that_restarts_has_no_negative_rate(
    callers: CallerLoads, clock: FakeClock
) -> None:
    reports = []
    for second in range(30):
        clock.now_s = second
        tokens = 10_000 if second == 0 else 100 * second
        callers.record(CallerLoad("a", arrived_interactive_tokens=tokens))
        reports.append(callers.add_to(ReplicaLoad()))
    assert all(report.is_plausible for report in reports)
    assert reports[-1].arrived_interactive_tokens_per_s == pytest.approx(100)
