import logging

import pytest

from serve_app.autoscale.decision_log import MAX_CHANGES, DecisionLog
from serve_app.autoscale.fleet_load import sum_reports
from serve_app.autoscale.policy import Bounds, Decision
from serve_app.autoscale.scaling_record import ScalingRecord


def add(log: DecisionLog, target: int, replicas: int, now_s: float = 0.0) -> ScalingRecord:
    return log.add(
        Decision(replicas, f"{replicas} are needed", "arrivals", {"arrivals": replicas}),
        sum_reports({}, target),
        target=target,
        bounds=Bounds(1, 100, room=50),
        arrivals=700.0,
        now_s=now_s,
    )


def test_a_record_says_what_is_decided_and_by_which_numbers() -> None:
    record = add(DecisionLog("Embedder", {"headroom": 0.3}), 2, 3, 5.0)
    assert (record["deployment"], record["running"], record["target"]) == ("Embedder", 2, 3)
    assert (record["decided_by"], record["needs"]) == ("arrivals", {"arrivals": 3})
    assert (record["min_replicas"], record["max_replicas"], record["room"]) == (1, 100, 50)
    assert record["expected_tokens_per_s"] == 700
    assert record["settings"] == {"headroom": 0.3}
    assert record["changes"] == [{"unix": 5.0, "before": 2, "after": 3, "reason": "3 are needed"}]


def test_the_latest_changes_are_kept_newest_first() -> None:
    log = DecisionLog("Embedder", {})
    for target in range(1, 30):
        record = add(log, target, target + 1, float(target))
    assert [change["after"] for change in record["changes"]] == list(
        range(30, 30 - MAX_CHANGES, -1)
    )


def test_changes_are_logged_once_whatever_the_level_of_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    log = DecisionLog("Embedder", {})
    for target, replicas in ((2, 2), (2, 3), (2, 3), (3, 3)):  # Ray follows after a delay
        add(log, target, replicas)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["Embedder: 2 → 3 replicas: 3 are needed"]
