"""The bench of roll-outs: what it changes, which outcome is good, and its table."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.rollouts.changes import applied, base_config, make_changes, with_hashing
from benchmarks.rollouts.run import is_good, summary
from benchmarks.rollouts.table import table
from serve_app.config import AppConfig

ROOT = Path(__file__).parents[2]
FIGURES = {
    "sent": 1200,
    "right": 1198,
    "refused": 2,
    "failed": 0,
    "lost": 0,
    "wrong": 0,
    "repeated": 1,
    "p50_ms": 12.0,
    "p99_ms": 700.0,
    "worst_ms": 1234.0,
}


def record(*, expected: int = 0, status: int = 0, **figures: int) -> dict[str, Any]:
    return {
        "topology": "separate",
        "change": "another model",
        "expected_exit_status": expected,
        "exit_status": status,
        "seconds": 12.3,
        "during": FIGURES | figures,
    }


def test_good_configurations_are_valid_and_differ_from_the_one_before(tmp_path: Path) -> None:
    file = yaml.safe_load((ROOT / "configs" / "one-machine.yaml").read_text("utf-8"))
    config = base_config(file)
    assert AppConfig.parse(with_hashing(config)["applications"][0]["args"])
    changes = make_changes(tmp_path)
    for change, _ in zip(changes, range(40), strict=False):
        changed = applied(change, config)
        assert changed != config, change.name
        if not change.reason:
            AppConfig.parse(changed["applications"][0]["args"])
            config = changed


def test_an_outcome_is_good_if_no_request_is_broken_and_the_command_ends_as_expected() -> None:
    assert is_good(record())
    failed = record(expected=1, status=1) | {"expected_message": "needs a GPU"}
    assert is_good(failed | {"message": "`device: cuda` needs a GPU."})
    assert not is_good(failed | {"message": "No such file."})
    assert not is_good(record(expected=1, status=0))
    assert not is_good(record(status=1))
    for kind in ("failed", "lost", "wrong"):
        assert not is_good(record(**{kind: 1}))
    assert is_good({"total": FIGURES})


def test_the_summary_and_the_table_have_the_outcome_and_every_count() -> None:
    assert summary(record(status=1, failed=3)) == (
        "another model: not deployed in 12 s, 1200 sent, 2 refused, 1 repeated, 3 failed, "
        "worst 1.2 s"
    )
    all_of_them = {"topology": "separate", "change": "all", "total": FIGURES}
    _, _, row, last = table([record(), all_of_them]).splitlines()
    assert row == (
        "| separate | another model | deployed | 12 | 1,200 | 2 | 0 | 0 | 0 | 12 | 1234 |"
    )
    assert last == "| separate | all |  |  | 1,200 | 2 | 0 | 0 | 0 | 12 | 1234 |"
