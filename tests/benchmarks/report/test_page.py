"""The report from the saved records, and from modified ones."""

from pathlib import Path

import pytest

from benchmarks.report.page import readme_table, report_page, update_readme
from benchmarks.report.publish import newest_records
from benchmarks.report.results import SuiteResults

RECORDS = newest_records()
assert RECORDS is not None
RESULTS = SuiteResults.read(RECORDS)


def scaled_results(peer: str, factor: float) -> SuiteResults:
    """The same results with one peer so many times as fast."""
    records = [dict(record) for record in RESULTS.records]
    for record in records:
        if record["peer"] == peer:
            for key in record:
                if key.endswith("_per_s"):
                    record[key] *= factor
                elif key.startswith("p") and key.endswith("_ms"):
                    record[key] /= factor
    return SuiteResults(records)


def best_peer_rows(results: SuiteResults) -> list[str]:
    heading = "## EmbedServe against the best other peer"
    return report_page(results, []).split(heading)[1].split("##")[0].splitlines()


def test_the_report_marks_where_embedserve_is_behind() -> None:
    slower, faster = scaled_results("embedserve", 0.001), scaled_results("embedserve", 1000)
    rows = [row for row in best_peer_rows(slower) if "one client" in row or "32 c" in row]
    assert len(rows) == 2
    assert all("**behind**" in row for row in rows)
    rows = [row for row in best_peer_rows(faster) if "in process" not in row]
    assert len(rows) > 5
    assert not any("**behind**" in row for row in rows)


def test_every_server_is_in_every_table() -> None:
    page = report_page(RESULTS, [])
    for peer in RESULTS.peers("server"):
        assert page.count(f"| {RESULTS.titles[peer]} |") >= 1
        assert RESULTS.titles[peer] in readme_table(RESULTS)
    assert len(RESULTS.peers("server")) >= 5


def test_the_report_shows_the_instruction_sets_and_the_precision() -> None:
    records = [dict(record) for record in RESULTS.records]
    sets = ["avx2", "avx512_vnni"]
    records[0] |= {
        "precision": "fp32",
        "machine": {**records[0]["machine"], "instruction_sets": sets},
    }
    results = SuiteResults(records)
    page = report_page(results, [])
    assert f"({records[0]['machine']['cpu']}: avx2, avx512_vnni)" in page
    assert "in EmbedServe at fp32" in page
    assert "in EmbedServe at fp32" in readme_table(results)


def test_the_report_lists_peers_that_were_not_measured() -> None:
    unavailable = {"experiment": "left out", "peer": "other", "why": "a traceback\nthe reason"}
    page = report_page(SuiteResults([*RESULTS.records, unavailable]), [])
    assert "- other: the reason" in page.split("## Not measured")[1]


def test_a_readme_without_markers_is_not_changed(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A project\n")
    with pytest.raises(ValueError, match="lacks the markers"):
        update_readme(readme, "a table\n")
    assert readme.read_text() == "# A project\n"


def test_the_table_replaces_the_text_between_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    update_readme(readme, "new\n")
    assert readme.read_text() == "before\n<!-- benchmark -->\nnew\n<!-- /benchmark -->\nafter\n"
