"""Every figure that README and the report show comes from a record that is kept."""

import re
from pathlib import Path

import pytest

from benchmarks.report.figures import Figures
from benchmarks.report.page import between_marks, readme_table
from benchmarks.report.publish import HOME, README, newest, publish

RECORDS = newest()
assert RECORDS is not None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert RECORDS is not None
    publish(RECORDS, folder, None)
    return folder


def test_the_report_is_what_the_records_say(published: Path) -> None:
    assert (HOME / "REPORT.md").read_text("utf-8") == (published / "REPORT.md").read_text("utf-8")


def test_so_are_its_pictures(published: Path) -> None:
    drawn = {file.name for file in (published / "pictures").iterdir()}
    assert drawn == {file.name for file in (HOME / "pictures").iterdir()}
    for name in drawn:
        if name.endswith(".svg"):
            kept, anew = HOME / "pictures" / name, published / "pictures" / name
            assert kept.read_text("utf-8") == anew.read_text("utf-8"), name


def test_the_table_in_the_readme_is_what_the_records_say() -> None:
    assert RECORDS is not None
    assert between_marks(README.read_text("utf-8")) == readme_table(Figures.read(RECORDS))


def test_the_readme_shows_no_figure_outside_of_that_table() -> None:
    readme = README.read_text("utf-8")
    rest = readme.replace(between_marks(readme), "")
    assert re.findall(r"\d[\d.,]* ?(?:requests?|texts|tokens|queries|req)/s|\d ?ms\b", rest) == []


def test_the_records_are_of_a_whole_suite_at_a_commit() -> None:
    assert RECORDS is not None
    figures = Figures.read(RECORDS)
    assert figures.first["rounds"] >= 5
    assert not figures.first["commit"].endswith("-dirty")
    assert len({record["suite"] for record in figures.records}) == 1
    assert len(figures.peers("server")) >= 5
