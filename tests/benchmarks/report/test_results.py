import math

import pytest

from benchmarks.report.results import (
    Spread,
    SuiteResults,
    format_number,
    format_ratio,
    format_spread,
)


def record(peer: str, turn: int, **metrics: float) -> dict[str, object]:
    parameters = {
        "experiment": "server",
        "peer": peer,
        "title": peer.title(),
        "round": turn,
        "x": 1.0,
    }
    return {**parameters, **metrics}


#: The machine is half as fast in the second round.
DRIFTING = SuiteResults(
    [
        *(record("embedserve", turn, rate=rate) for turn, rate in enumerate((200, 100, 220))),
        *(record("other", turn, rate=rate) for turn, rate in enumerate((100, 50, 100))),
    ]
)


def test_a_spread_is_the_median_minimum_and_maximum_over_rounds() -> None:
    assert DRIFTING.spread("server", "embedserve", 1, "rate") == Spread(200, 100, 220)
    assert DRIFTING.spread("server", "embedserve", 2, "rate") is None


def test_drift_does_not_affect_ratios() -> None:
    assert DRIFTING.ratio("server", "embedserve", "other", 1, "rate") == 2
    assert DRIFTING.ratio("server", "embedserve", "unknown", 1, "rate") is None


def test_the_best_other_peer() -> None:
    results = SuiteResults(
        [record(name, 0, ms=ms) for name, ms in (("embedserve", 1), ("a", 3), ("b", 2))]
    )
    assert results.best_peer("server", 1, "ms", lower_is_better=True) == "b"
    assert results.best_peer("server", 1, "ms", lower_is_better=False) == "a"
    assert results.best_peer("server", 9, "ms", lower_is_better=True) is None


def test_a_round_without_a_response_has_infinite_latency() -> None:
    results = SuiteResults([record("a", 0), record("a", 1, p99_ms=5.0), record("a", 2)])
    spread = results.spread("server", "a", 1, "p99_ms")
    assert spread is not None
    assert math.isinf(spread.median)
    assert format_spread(spread) == "none (5.00–none)"


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (99.96, "100.0"), (12.34, "12.3"), (0.456, "0.46")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert format_number(value) == text


def test_missing_values_are_dashes() -> None:
    assert format_ratio(1.5) == "1.50×"
    assert format_ratio(None) == "–"
    assert format_spread(None) == "–"
