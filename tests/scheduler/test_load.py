import pytest

from serve_app.scheduler.load import LoadMeter
from serve_app.scheduler.replica_load import ReplicaLoad
from tests.scheduler.fake_clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def meter(clock: FakeClock) -> LoadMeter:
    return LoadMeter(clock)


def report(meter: LoadMeter) -> ReplicaLoad:
    return meter.report(oldest_interactive_s=0.0, capacity_tokens_per_s=0.0)


def test_a_report_covers_the_time_since_the_previous_one(
    meter: LoadMeter, clock: FakeClock
) -> None:
    meter.admit("interactive", 300)
    meter.release("interactive", 100)
    meter.admit("bulk", 1000)
    clock.now_s = 2
    load = report(meter)
    assert (load.queued_interactive_tokens, load.queued_bulk_tokens) == (200, 1000)
    offered = load.offered_interactive_tokens_per_s, load.offered_bulk_tokens_per_s
    assert offered == (150, 500)
    clock.now_s = 3
    load = report(meter)
    assert load == ReplicaLoad(queued_interactive_tokens=200, queued_bulk_tokens=1000)


def test_texts_that_another_replica_had_before_are_queued_but_do_not_arrive(
    meter: LoadMeter, clock: FakeClock
) -> None:
    meter.admit("interactive", 300, is_arrival=False)
    clock.now_s = 2
    assert report(meter) == ReplicaLoad(queued_interactive_tokens=300)


def test_reports_in_quick_succession_have_the_same_rates(
    meter: LoadMeter, clock: FakeClock
) -> None:
    meter.admit("interactive", 100)
    clock.now_s = 1
    first = report(meter)
    clock.now_s = 1.001
    meter.admit("interactive", 50)
    second = report(meter)
    assert second.queued_interactive_tokens == 150
    assert second.offered_interactive_tokens_per_s == first.offered_interactive_tokens_per_s == 100
    clock.now_s = 2
    assert report(meter).offered_interactive_tokens_per_s == 50  # none are lost


def test_missed_reports_are_averaged(meter: LoadMeter, clock: FakeClock) -> None:
    for clock.now_s in range(10):
        meter.admit("bulk", 100)
        run_batch(meter, clock, 30, 0.0)
    clock.now_s = 10
    load = report(meter)
    assert (load.offered_bulk_tokens_per_s, load.served_tokens_per_s) == (100, 30)


def test_the_engine_is_busy_while_a_batch_runs(meter: LoadMeter, clock: FakeClock) -> None:
    clock.now_s = 1
    first = meter.start_batch("a")
    second = meter.start_batch("b")
    clock.now_s = 2
    meter.end_batch(first, 10)
    clock.now_s = 4
    assert report(meter).busy_share == pytest.approx(0.75)  # also before the second one ends
    clock.now_s = 5
    meter.end_batch(second, 10)
    clock.now_s = 8
    assert report(meter).busy_share == pytest.approx(0.25)


def test_other_readers_of_the_busy_share_do_not_disturb_reports(
    meter: LoadMeter, clock: FakeClock
) -> None:
    run_batch(meter, clock, 10, 2)
    clock.now_s = 3
    assert meter.busy_share() == pytest.approx(2 / 3)
    clock.now_s = 4
    assert meter.busy_share() == 0
    assert report(meter).busy_share == pytest.approx(0.5)


def run_batch(meter: LoadMeter, clock: FakeClock, tokens: int, seconds: float) -> None:
    batch = meter.start_batch("model")
    clock.now_s += seconds
    meter.end_batch(batch, tokens)


def test_the_speed_follows_recent_batches(meter: LoadMeter, clock: FakeClock) -> None:
    run_batch(meter, clock, 1000, 1)
    assert meter.tokens_per_s == 1000
    for _ in range(10):
        run_batch(meter, clock, 4000, 2)
    assert meter.tokens_per_s == pytest.approx(2000, rel=0.01)


def test_idle_time_does_not_lower_the_speed(meter: LoadMeter, clock: FakeClock) -> None:
    run_batch(meter, clock, 1000, 1)
    clock.now_s = 3600
    run_batch(meter, clock, 1000, 1)
    assert meter.tokens_per_s == pytest.approx(1000)


def test_concurrent_batches_count_as_one_speed(meter: LoadMeter, clock: FakeClock) -> None:
    previous = meter.start_batch("model")
    for _ in range(20):  # two streams; each batch starts halfway through the other
        clock.now_s += 0.25
        batch = meter.start_batch("model")
        clock.now_s += 0.25
        meter.end_batch(previous, 100)
        previous = batch
    assert meter.tokens_per_s == pytest.approx(200)


def test_a_failed_batch_counts_as_busy_time(meter: LoadMeter, clock: FakeClock) -> None:
    run_batch(meter, clock, 100, 0.1)
    run_batch(meter, clock, 0, 0.1)
    assert meter.tokens_per_s == pytest.approx(500, rel=0.1)


def test_batches_know_how_many_ran_at_a_time(meter: LoadMeter, clock: FakeClock) -> None:
    first = meter.start_batch("a")
    clock.now_s = 1
    second = meter.start_batch("a")
    assert (meter.running_batches("a"), meter.running_batches("b")) == (2, 0)
    assert meter.longest_batch_s == 1
    clock.now_s = 2
    meter.end_batch(first, 10)
    clock.now_s = 3
    meter.end_batch(second, 10)
    assert (first.seconds, first.concurrency) == pytest.approx((2, 1.5))
    assert (second.seconds, second.concurrency) == pytest.approx((2, 1.5))
    assert (meter.running_batches("a"), meter.longest_batch_s) == (0, 0)
