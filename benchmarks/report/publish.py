"""Writes the report and its pictures: what `embedserve bench report` does."""

from pathlib import Path

from ..record import RESULTS
from .figures import Figures
from .page import put_into, readme_table, report
from .plots import pictures

HOME = RESULTS.parent
README = HOME.parent / "README.md"
_SUITES = "suite-*.jsonl"


def newest() -> Path | None:
    """The records of the last whole suite; None when there are none."""
    return max(RESULTS.glob(_SUITES), default=None)


def publish(records: Path, folder: Path = HOME, readme: Path | None = README) -> Path:
    """Makes REPORT.md and its pictures in a folder, and the table in a README, from records."""
    figures = Figures.read(records)
    drawn = pictures(figures, folder / "pictures")
    page = folder / "REPORT.md"
    page.write_text(report(figures, drawn), "utf-8")
    if readme is not None:
        put_into(readme, readme_table(figures))
    return page
