import math

import pytest

from benchmarks.report.figures import Figures, Spread, number, ratio, spread


def record(peer: str, turn: int, **figures: float) -> dict[str, object]:
    place = {"experiment": "server", "peer": peer, "title": peer.title(), "round": turn, "x": 1.0}
    return {**place, **figures}


#: A machine that is half as fast in its second round.
DRIFTS = Figures(
    [
        *(record("embedserve", turn, rate=rate) for turn, rate in enumerate((200, 100, 220))),
        *(record("other", turn, rate=rate) for turn, rate in enumerate((100, 50, 100))),
    ]
)


def test_median_least_and_most_over_rounds() -> None:
    assert DRIFTS.at("server", "embedserve", 1, "rate") == Spread(200, 100, 220)
    assert DRIFTS.at("server", "embedserve", 2, "rate") is None


def test_ratios_are_taken_in_each_round_so_that_drift_does_not_count() -> None:
    assert DRIFTS.ratio("server", "embedserve", "other", 1, "rate") == 2
    assert DRIFTS.ratio("server", "embedserve", "nobody", 1, "rate") is None


def test_the_best_of_the_others() -> None:
    figures = Figures(
        [record(name, 0, ms=ms) for name, ms in (("embedserve", 1), ("a", 3), ("b", 2))]
    )
    assert figures.best("server", 1, "ms", low=True) == "b"
    assert figures.best("server", 1, "ms", low=False) == "a"
    assert figures.best("server", 9, "ms", low=True) is None


def test_no_answer_at_all_is_an_endless_latency_not_a_good_one() -> None:
    figures = Figures([record("a", 0), record("a", 1, p99_ms=5.0), record("a", 2)])
    found = figures.at("server", "a", 1, "p99_ms")
    assert found is not None
    assert math.isinf(found.median)
    assert spread(found) == "none (5.00–none)"


@pytest.mark.parametrize(
    ("value", "shown"), [(12345.6, "12,346"), (99.96, "100.0"), (12.34, "12.3"), (0.456, "0.46")]
)
def test_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_ratio_and_none() -> None:
    assert ratio(1.5) == "1.50×"
    assert ratio(None) == "–"
    assert spread(None) == "–"
