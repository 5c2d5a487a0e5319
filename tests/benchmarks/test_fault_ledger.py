import pytest

from benchmarks.faults.ledger import Kind, Ledger


def ledger_of(*requests: tuple[float, float, Kind]) -> Ledger:
    """Returns a ledger of requests, each with its start, its latency and its kind."""
    ledger = Ledger()
    for number, (started_s, latency_s, kind) in enumerate(requests):
        ledger.open(str(number), started_s)
        ledger.close(str(number), started_s + latency_s, kind, "" if kind is Kind.RIGHT else "bad")
    return ledger


def steady(start_s: float, end_s: float) -> list[tuple[float, float, Kind]]:
    """Returns ten right requests per second."""
    count = round((end_s - start_s) * 10)
    return [(start_s + i / 10, 0.01, Kind.RIGHT) for i in range(count)]


def recovery(ledger: Ledger, healed_s: float) -> float | None:
    return ledger.recovered_at(healed_s, stable_s=3, min_requests=10, max_latency_s=1)


def test_each_request_counts_once_in_the_period_of_its_end() -> None:
    ledger = ledger_of(
        (0, 1, Kind.RIGHT),
        (1, 2, Kind.FAILED),  # in flight when the fault begins
        (5, 1, Kind.REFUSED),
        (9, 3, Kind.WRONG),  # in flight when it ends
        (11, 0.5, Kind.RIGHT),
        (12, 0.1, Kind.LOST),
    )
    periods = ledger.periods(injected_s=2, healed_s=10)
    counts = {
        name: (f.sent, f.right, f.refused, f.failed, f.lost, f.wrong) for name, f in periods.items()
    }
    assert counts == {
        "before": (1, 1, 0, 0, 0, 0),
        "during": (3, 0, 1, 1, 0, 1),
        "after": (2, 1, 0, 0, 1, 0),
    }


def test_requests_without_an_end_are_lost() -> None:
    ledger = Ledger()
    ledger.open("a", 1.0)
    assert [*ledger.open_requests] == ["a"]
    ledger.give_up(40.0)
    assert [(o.request_id, o.kind, o.latency_s) for o in ledger.outcomes] == [
        ("a", Kind.LOST, 39.0)
    ]
    assert not ledger.open_requests


def test_an_id_is_sent_once_and_ends_once() -> None:
    ledger = ledger_of((0, 1, Kind.RIGHT))
    with pytest.raises(ValueError, match="sent before"):
        ledger.open("0", 5)
    with pytest.raises(KeyError):
        ledger.close("0", 6, Kind.FAILED)


def test_latencies_are_those_of_right_replies() -> None:
    ledger = ledger_of((0, 0.5, Kind.RIGHT), (0, 0.1, Kind.RIGHT), (0, 30, Kind.LOST))
    figures = ledger.periods(100, 100)["before"]
    assert (figures.p50_ms, figures.worst_ms) == (300.0, 500.0)


def test_a_request_that_was_sent_again_counts_once() -> None:
    ledger = Ledger()
    ledger.open("a", 0)
    ledger.close("a", 3, Kind.RIGHT, attempts=3)
    figures = ledger.periods(10, 10)["before"]
    assert (figures.sent, figures.right, figures.repeated) == (1, 1, 1)


def test_a_fault_without_bad_requests_needs_no_time_to_recover() -> None:
    assert recovery(ledger_of(*steady(0, 20)), healed_s=10) == 10


@pytest.mark.parametrize(
    "bad", [(12.05, 0.01, Kind.FAILED), (12.05, 0.01, Kind.REFUSED), (12.05, 1.5, Kind.RIGHT)]
)
def test_recovery_begins_at_the_last_bad_or_slow_request(bad: tuple[float, float, Kind]) -> None:
    assert recovery(ledger_of(*steady(0, 20), bad), healed_s=10) == 12.05


def test_a_service_that_just_works_again_has_not_recovered_yet() -> None:
    failed = [(10 + i / 10, 0.01, Kind.FAILED) for i in range(20)]
    assert recovery(ledger_of(*failed, *steady(12, 14)), healed_s=10) is None


def test_requests_in_flight_delay_the_recovery() -> None:
    ledger = ledger_of(*steady(0, 14))
    ledger.open("hangs", 13.0)
    assert recovery(ledger, healed_s=10.5) is None


def test_no_requests_are_no_recovery() -> None:
    assert recovery(ledger_of(*steady(0, 9)), healed_s=10) is None


def test_the_timeline_has_each_second() -> None:
    ledger = ledger_of((100.2, 0.1, Kind.RIGHT), (100.9, 2, Kind.FAILED), (102.5, 0.1, Kind.RIGHT))
    assert ledger.timeline(100) == [
        {"second": 0, "right": 1, "other": 1, "worst_ms": 2000.0},
        {"second": 2, "right": 1, "other": 0, "worst_ms": 100.0},
    ]
    assert ledger.errors() == {"failed: bad": 1}
