"""Every figure of README and of the report comes from saved records."""

import re
from pathlib import Path

import pytest

from benchmarks.faults.catalog import FAULTS
from benchmarks.faults.page import page as fault_page
from benchmarks.faults.plot import draw
from benchmarks.faults.records import broken_requests, read_newest
from benchmarks.paths import README, REPORT_FOLDER
from benchmarks.paths import RESULTS as RESULTS_FOLDER
from benchmarks.report.page import extract_table, readme_table
from benchmarks.report.publish import newest_records, publish
from benchmarks.report.results import SuiteResults

RECORDS = newest_records()
assert RECORDS is not None
RESULTS = SuiteResults.read(RECORDS)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert RECORDS is not None
    publish(RECORDS, folder, None)
    return folder


def test_the_report_is_generated_from_the_newest_records(published: Path) -> None:
    page = (published / "REPORT.md").read_text("utf-8")
    assert (REPORT_FOLDER / "REPORT.md").read_text("utf-8") == page


def test_the_plots_are_generated_from_the_newest_records(published: Path) -> None:
    saved = REPORT_FOLDER / "pictures"
    drawn = {file.name: file for file in (published / "pictures").iterdir()}
    assert set(drawn) == {file.name for file in saved.iterdir()}
    assert [
        name
        for name, file in drawn.items()
        if file.suffix == ".svg" and file.read_text("utf-8") != (saved / name).read_text("utf-8")
    ] == []


def test_the_page_of_faults_is_generated_from_the_newest_records() -> None:
    assert (REPORT_FOLDER / "FAULTS.md").read_text("utf-8") == fault_page(
        read_newest(RESULTS_FOLDER)
    )


def test_the_plot_of_faults_is_generated_from_the_newest_records(tmp_path: Path) -> None:
    draw(RESULTS_FOLDER, tmp_path)
    saved = REPORT_FOLDER / "faults" / "pictures" / "faults.svg"
    assert (tmp_path / "faults.svg").read_text("utf-8") == saved.read_text("utf-8")


def test_each_fault_that_broke_requests_has_a_reason() -> None:
    broken = {r["fault"] for r in read_newest(RESULTS_FOLDER) if broken_requests(r)}
    assert [name for name in sorted(broken) if not FAULTS[name].reason] == []


def test_the_table_of_the_readme_is_generated_from_the_newest_records() -> None:
    assert extract_table(README.read_text("utf-8")) == readme_table(RESULTS)


def test_the_readme_has_no_other_figures() -> None:
    readme = README.read_text("utf-8")
    text = readme.replace(extract_table(readme), "")
    assert re.findall(r"\d[\d.,]* ?(?:requests?|texts|tokens|queries|req)/s|\d ?ms\b", text) == []


def test_the_records_are_of_a_complete_suite_at_a_commit() -> None:
    assert RESULTS.first["rounds"] >= 5
    assert not RESULTS.first["commit"].endswith("-dirty")
    assert len({record["suite"] for record in RESULTS.records}) == 1
    assert len(RESULTS.peers("server")) >= 5
