import pytest

from serve_app.engine.load import Load, LoadMeter


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


def test_the_speed_follows_the_last_batches() -> None:
    meter = LoadMeter(Clock())
    meter.computed(1000, 1)
    assert meter.tokens_per_s == 1000
    for _ in range(50):
        meter.computed(4000, 2)
    assert meter.tokens_per_s == pytest.approx(2000, rel=0.01)


def test_idling_does_not_make_it_slow() -> None:
    clock = Clock()
    meter = LoadMeter(clock)
    meter.computed(1000, 1)
    clock.now = 3600
    assert meter.read().capacity_tokens_per_s == 1000
