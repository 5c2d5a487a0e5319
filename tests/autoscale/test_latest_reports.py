from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from serve_app.autoscale.latest_reports import LatestReports


def metrics(**reports: tuple[float, float]) -> Mapping[str, Mapping[Any, Any]]:
    """Returns busy shares of replicas, each with the time that its node's clock shows."""
    samples = {
        replica: [SimpleNamespace(timestamp=written_s, value=value)]
        for replica, (written_s, value) in reports.items()
    }
    return {"busy_share": samples}


def test_a_report_that_does_not_change_is_lost_after_some_seconds() -> None:
    reports = LatestReports()
    stale, now_s = (1000.0, 0.5), 1000.0
    for second in range(5):
        assert set(reports.update(metrics(a=stale), now_s + second)) == {"a"}
    for second in range(6, 20):
        assert reports.update(metrics(a=stale), now_s + second) == {}
    assert set(reports.update(metrics(a=(1019.0, 0.5)), now_s + 20)) == {"a"}


def test_a_node_whose_clock_is_wrong_reports_like_the_others() -> None:
    reports = LatestReports()
    for second in range(20):
        now_s = 1000.0 + second
        loads = reports.update(metrics(a=(now_s, 0.5), slow=(now_s - 20, 0.5)), now_s)
        assert set(loads) == {"a", "slow"}


def test_a_report_from_before_a_controller_started_is_old() -> None:
    assert LatestReports().update(metrics(a=(900.0, 0.5)), 1000.0) == {}


def test_a_replica_is_new_until_it_reports_or_has_run_for_some_seconds() -> None:
    reports = LatestReports()
    reports.update(metrics(a=(1000.0, 0.5)), 1000.0)
    assert reports.count_new(["a", "b"], 1000.0) == 0  # they ran before this process
    reports.update(metrics(a=(1001.0, 0.5)), 1001.0)
    assert reports.count_new(["a", "b", "c", "d"], 1001.0) == 2
    reports.update(metrics(a=(1002.0, 0.5), c=(1002.0, 0.1)), 1002.0)
    assert reports.count_new(["a", "b", "c", "d"], 1002.0) == 1
    assert reports.count_new(["a", "b", "c", "d"], 1010.0) == 0


def test_impossible_values_and_replicas_that_left_are_left_out() -> None:
    reports = LatestReports()
    assert set(reports.update(metrics(a=(1000.0, 0.5), b=(1000.0, 77.0)), 1000.0)) == {"a"}
    assert reports.update({}, 1001.0) == {}
