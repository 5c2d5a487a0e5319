import json
from pathlib import Path

import pytest

from benchmarks import record


def test_a_record_says_all_one_needs_to_repeat_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    entries = [record.record({"workload": "query"}, {"p99_ms": n}) for n in (1.5, 2.5)]
    files = {record.keep(entry) for entry in entries}
    (file,) = files
    kept = [json.loads(row) for row in file.read_text("utf-8").splitlines()]
    assert kept == entries
    assert {"at", "commit", "command", "machine", "versions", "workload", "p99_ms"} <= set(kept[0])
    assert kept[0]["machine"]["cores"] >= 1
    assert kept[0]["versions"]["ray"] == "2.60.0"
