"""The rate of arrivals."""

import pytest

from serve_app.autoscale.arrival_rate import ArrivalRate


def after(*samples: float, rate: ArrivalRate | None = None, start_s: float = 0.0) -> ArrivalRate:
    rate = rate or ArrivalRate()
    for second, sample in enumerate(samples):
        rate = rate.updated(sample, start_s + second)
    return rate


def test_one_extreme_sample_is_no_new_level() -> None:
    assert after(*[100.0] * 60, 10_000.0).fast == pytest.approx(100, rel=0.1)


def test_two_extreme_samples_are_a_new_level() -> None:
    assert after(*[100.0] * 60, 1000.0, 1100.0).fast == pytest.approx(1050)


def test_a_wrong_level_is_forgotten_with_its_fluctuations() -> None:
    rate = after(*[100.0, 110.0, 90.0] * 20, 1e13, 1e13 + 1)
    rate = after(*[100.0, 110.0, 90.0] * 5, rate=rate, start_s=62)
    assert rate.fast == pytest.approx(100, rel=0.2)
    assert rate.deviation < 100


def test_a_rise_is_expected_to_go_on_and_a_fall_is_not() -> None:
    rising = after(*[100.0 + second for second in range(120)])
    assert rising.ahead(10.0) == pytest.approx(rising.fast + 10, rel=0.05)
    falling = after(*[1000.0 - second for second in range(120)])
    assert falling.ahead(10.0) == falling.fast
