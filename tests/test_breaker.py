import pytest

from serve_app.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(max_failures=3, probe_every_s=0.5, idle_after_s=5, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.record_failure()


def test_it_opens_after_consecutive_failures(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open


def test_a_success_resets_the_count(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.record_success()
    fail(breaker, 2)
    assert not breaker.is_open


def test_a_late_success_does_not_close_it(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.record_success()
    assert breaker.is_open


def test_a_successful_probe_closes_it_and_resets_the_count(breaker: Breaker) -> None:
    fail(breaker, 3)
    breaker.record_probe(True)
    assert not breaker.is_open
    fail(breaker, 2)
    assert not breaker.is_open


def test_a_failed_probe_opens_it_at_once(breaker: Breaker) -> None:
    breaker.record_probe(False)
    assert breaker.is_open


def test_the_first_probe_is_due_at_once(breaker: Breaker) -> None:
    assert breaker.probe_due()


def test_while_it_is_open_probes_are_due_at_intervals(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    for _ in range(3):
        assert not breaker.probe_due()
        clock.now += 0.5
        assert breaker.probe_due()
        breaker.record_probe(False)


def test_late_failures_do_not_delay_the_probe(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now = 0.5
    fail(breaker, 1)
    assert breaker.probe_due()


def test_a_single_failure_makes_a_probe_due_soon(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 1)
    clock.now = 0.5
    assert breaker.probe_due()


def test_successful_traffic_needs_no_probe(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10):
        breaker.record_success()
        clock.now += 4.9
        assert not breaker.probe_due()
    clock.now += 0.1
    assert breaker.probe_due()
