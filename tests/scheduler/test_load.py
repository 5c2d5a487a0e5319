import pytest

from serve_app.scheduler.load import LoadMeter, LoadSample
from tests.scheduler.fake_clock import FakeClock


def test_a_sample_covers_the_time_since_the_previous_sample() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    meter.admit(300)
    meter.release(100)
    clock.now_s = 2
    assert meter.sample() == LoadSample(200, 150, 0)
    clock.now_s = 3
    assert meter.sample() == LoadSample(200, 0, 0)


def run_batch(meter: LoadMeter, clock: FakeClock, tokens: int, seconds: float) -> None:
    meter.start_batch()
    clock.now_s += seconds
    meter.end_batch(tokens)


def test_the_speed_follows_recent_batches() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    run_batch(meter, clock, 1000, 1)
    assert meter.tokens_per_s == 1000
    for _ in range(10):
        run_batch(meter, clock, 4000, 2)
    assert meter.tokens_per_s == pytest.approx(2000, rel=0.01)


def test_idle_time_does_not_lower_the_speed() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    run_batch(meter, clock, 1000, 1)
    clock.now_s = 3600
    run_batch(meter, clock, 1000, 1)
    assert meter.sample().capacity_tokens_per_s == pytest.approx(1000)


def test_concurrent_batches_count_as_one_speed() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    meter.start_batch()
    for _ in range(20):  # two streams; each batch starts halfway through the other
        clock.now_s += 0.25
        meter.start_batch()
        clock.now_s += 0.25
        meter.end_batch(100)
    assert meter.tokens_per_s == pytest.approx(200)


def test_a_failed_batch_counts_as_busy_time() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    run_batch(meter, clock, 100, 0.1)
    run_batch(meter, clock, 0, 0.1)
    assert meter.tokens_per_s == pytest.approx(500, rel=0.1)
