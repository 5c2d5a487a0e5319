import json
from pathlib import Path

from benchmarks.record import make_record, save_record


def test_a_record_holds_everything_to_repeat_a_run(tmp_path: Path) -> None:
    records = [make_record({"workload": "query"}, {"p99_ms": n}) for n in (1.5, 2.5)]
    (file,) = {save_record(record, tmp_path / "results") for record in records}
    saved = [json.loads(row) for row in file.read_text("utf-8").splitlines()]
    assert saved == records
    assert {"at", "commit", "command", "machine", "versions", "workload", "p99_ms"} <= set(saved[0])
    assert saved[0]["machine"]["cores"] >= 1
    assert {"instruction_sets", "cpu"} <= set(saved[0]["machine"])
    assert saved[0]["versions"]["ray"] == "2.60.0"
