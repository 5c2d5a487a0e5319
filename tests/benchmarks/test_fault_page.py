"""FAULTS.md is generated from the records, and every fault is usable."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.faults.catalog import FAULTS
from benchmarks.faults.elsewhere import TESTED
from benchmarks.faults.page import page
from benchmarks.faults.records import broken_requests, read_newest, summary
from benchmarks.faults.service import TOPOLOGIES
from benchmarks.paths import ROOT

FIGURES = {"sent": 100, "right": 100, "refused": 0, "failed": 0, "lost": 0, "wrong": 0}
LATENCIES = {"repeated": 0, "p50_ms": 5.0, "p99_ms": 20.0, "worst_ms": 30.0}


def record(fault: str, topology: str = "separate", **changes: Any) -> dict[str, Any]:
    during = {**FIGURES, **LATENCIES, **changes.pop("during", {})}
    return {
        "at": "2026-11-29T08:00:00+00:00",
        "machine": {"cores": 2, "cpu": "a CPU"},
        "fault": fault,
        "topology": topology,
        "rate": 25.0,
        "recovery_s": 1.5,
        "problem": "",
        "before": {**FIGURES, **LATENCIES},
        "during": during,
        "after": {**FIGURES, **LATENCIES},
        "errors": {},
        **changes,
    }


def test_a_row_has_the_sums_of_all_periods() -> None:
    text = page([record("kill-haproxy", during={"failed": 7, "refused": 3, "p99_ms": 1234.0})])
    (row,) = [line for line in text.splitlines() if line.startswith("| `kill-haproxy`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:] == ["300", "3", "7", "0", "0", "1,234", "1.5"]


def test_a_fault_that_broke_requests_is_explained_below_the_table() -> None:
    broken = record("keys-broken", during={"failed": 2}, errors={"failed: status 500": 2})
    assert "`keys-broken`: No reason is known: this is a bug. (2 × failed: status 500)" in page(
        [broken]
    )


def test_faults_that_could_not_be_injected_have_no_row() -> None:
    assert "disk-full" not in page([record("disk-full", problem="RuntimeError: Only root can.")])


def test_a_service_that_did_not_recover_says_so() -> None:
    row = record("kill-ingress", recovery_s=None)
    assert "| not within 60 |" in page([row])
    assert "not recovered" in summary(row)


def test_the_newest_record_of_each_fault_and_topology_counts(tmp_path: Path) -> None:
    old, new = record("kill-valkey", during={"lost": 1}), record("kill-valkey")
    other = record("kill-valkey", "colocated")
    for name, records in (("faults-1.jsonl", [old, other]), ("faults-2.jsonl", [new])):
        (tmp_path / name).write_bytes(b"\n".join(map(orjson.dumps, records)))
    (tmp_path / "suite-1.jsonl").write_text("{}")
    assert [broken_requests(r) for r in read_newest(tmp_path)] == [0, 0]


def test_each_fault_has_a_name_and_a_description_and_is_bounded() -> None:
    for name, fault in FAULTS.items():
        assert fault.name == name
        assert fault.description
        assert 0 <= fault.duration_s <= 60
        assert {*fault.topologies} <= {*TOPOLOGIES}


@pytest.mark.parametrize("arguments", [["--list"], ["--help"]])
def test_the_command_lists_and_explains(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.faults", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    expected = FAULTS if "--list" in arguments else ["--only", "--minutes", "--topology", "Ctrl-C"]
    assert [name for name in expected if name not in done.stdout] == []


def test_unknown_faults_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--only", "kill-everything"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "kill-everything" in done.stderr


@pytest.mark.parametrize("test", [test for *_, test in TESTED])
def test_the_page_names_tests_that_exist(test: str) -> None:
    file, name = test.split("::")
    assert f"def {name}(" in (ROOT / file).read_text("utf-8")
