"""The verdicts of `embedserve bench check`, from synthetic records."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import CHECK, check_experiments
from benchmarks.thresholds import THRESHOLDS, print_check


def records(metrics: dict[str, dict[str, float]]) -> Iterable[dict[str, Any]]:
    """Records of all points of all peers: `metrics` by peer, and the same default for others."""
    default = {
        **dict.fromkeys(("requests_per_s", "texts_per_s", "bulk_texts_per_s"), 100.0),
        **{"p50_ms": 10.0, "p99_ms": 20.0, "start_s": 1.0, "pss_mib": 100.0, "processes": 2},
    }
    for experiment in check_experiments(CHECK):
        for point in experiment.points:
            for peer in experiment.peers_at(point):
                yield {
                    "experiment": experiment.name,
                    "peer": peer.name,
                    "title": peer.title,
                    "round": 0,
                    "rounds": 1,
                    "commit": "abc",
                    "precision": "fp32",
                    "machine": {"cores": 2, "cpu": "a CPU", "instruction_sets": ["avx2"]},
                    "x": point.x,
                    "bulk": point.bulk,
                    "workload": point.workload.name,
                    **point.plan.describe(),
                    **default,
                    **metrics.get(peer.name, {}),
                }


def verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: dict[str, dict[str, float]]
) -> tuple[int, dict[str, str]]:
    file = tmp_path / "check.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in records(metrics)))
    status = print_check(file)
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()]
    titles = {threshold.title for threshold in THRESHOLDS}
    found = {row[0].strip("| "): row[-1].strip("| *") for row in rows}
    return status, {title: found[title] for title in titles}


def test_every_threshold_is_measured_without_a_baseline_but_those_of_a_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = verdicts(tmp_path, capsys, {})
    for title, verdict in found.items():
        assert (verdict == "not measured") == ("the baseline" in title), title


def test_a_missed_threshold_is_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"requests_per_s": 40.0, "texts_per_s": 40.0, "p50_ms": 20.0}
    fast = {"engine": {"texts_per_s": 90.0}, "infinity-optimum": slow}
    # Hits are as fast as everything else in these records.
    status, found = verdicts(tmp_path, capsys, fast)
    assert status == 1
    missed = {title for title, verdict in found.items() if verdict == "missed"}
    assert all("hits of the shared server" in title for title in missed)
    assert len(missed) == 2
    _, found = verdicts(tmp_path, capsys, {**fast, "embedserve-colocated": slow})
    slower = {title for title, verdict in found.items() if verdict == "missed"} - missed
    assert len(slower) == 6
    assert all(title.startswith("embedserve-colocated: ") for title in slower)
