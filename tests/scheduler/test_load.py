import pytest

from serve_app.scheduler.load import Load, LoadMeter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_reading_covers_the_time_since_the_last_one() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    meter.arrive(300)
    meter.leave(100)
    clock.now = 2
    assert meter.read() == Load(200, 150, 0)
    clock.now = 3
    assert meter.read() == Load(200, 0, 0)


def run(meter: LoadMeter, clock: Clock, tokens: int, seconds: float) -> None:
    meter.begin()
    clock.now += seconds
    meter.end(tokens)


def test_the_speed_follows_the_last_batches() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    run(meter, clock, 1000, 1)
    assert meter.tokens_per_s == 1000
    for _ in range(10):
        run(meter, clock, 4000, 2)
    assert meter.tokens_per_s == pytest.approx(2000, rel=0.01)


def test_idling_does_not_make_it_slow() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    run(meter, clock, 1000, 1)
    clock.now = 3600
    run(meter, clock, 1000, 1)
    assert meter.read().capacity_tokens_per_s == pytest.approx(1000)


def test_batches_side_by_side_are_one_speed() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    meter.begin()
    for _ in range(20):  # two streams; each batch begins while the other is half done
        clock.now += 0.25
        meter.begin()
        clock.now += 0.25
        meter.end(100)
    assert meter.tokens_per_s == pytest.approx(200)


def test_a_batch_that_failed_took_its_time_too() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    run(meter, clock, 100, 0.1)
    run(meter, clock, 0, 0.1)
    assert meter.tokens_per_s == pytest.approx(500, rel=0.1)
