"""The page from the records that are kept, and what it would say of others."""

from pathlib import Path

import pytest

from benchmarks.report.figures import Figures
from benchmarks.report.page import put_into, readme_table, report
from benchmarks.report.publish import newest

RECORDS = newest()
assert RECORDS is not None
FIGURES = Figures.read(RECORDS)


def scaled(peer: str, factor: float) -> Figures:
    """The same run, had one peer been so many times as fast."""
    records = [dict(record) for record in FIGURES.records]
    for record in records:
        if record["peer"] == peer:
            for key in record:
                if key.endswith("_per_s"):
                    record[key] *= factor
                elif key.startswith("p") and key.endswith("_ms"):
                    record[key] /= factor
    return Figures(records)


def against_the_best(figures: Figures) -> str:
    return report(figures, []).split("## EmbedServe against the best")[1].split("##")[0]


def test_it_says_where_we_are_behind() -> None:
    slower, faster = scaled("embedserve", 0.001), scaled("embedserve", 1000)
    rows = [r for r in against_the_best(slower).splitlines() if "one client" in r or "32 c" in r]
    assert len(rows) == 2
    assert all("**behind**" in row for row in rows)
    rows = [row for row in against_the_best(faster).splitlines() if "the model alone" not in row]
    assert not any("**behind**" in row for row in rows)


def test_every_server_is_in_every_table() -> None:
    page = report(FIGURES, [])
    for peer in FIGURES.peers("server"):
        assert page.count(f"| {FIGURES.titles[peer]} |") >= 1
        assert FIGURES.titles[peer] in readme_table(FIGURES)
    assert len(FIGURES.peers("server")) >= 5


def test_who_was_left_out_is_told() -> None:
    left_out = {"experiment": "left out", "peer": "other", "why": "a long story\nthe reason"}
    page = report(Figures([*FIGURES.records, left_out]), [])
    assert "- other: the reason" in page.split("## Not measured")[1]


def test_a_readme_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A project\n")
    with pytest.raises(ValueError, match="no place for the table"):
        put_into(readme, "a table\n")
    assert readme.read_text() == "# A project\n"


def test_the_table_goes_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    put_into(readme, "new\n")
    assert readme.read_text() == "before\n<!-- benchmark -->\nnew\n<!-- /benchmark -->\nafter\n"
