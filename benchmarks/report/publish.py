"""Writes the report, its plots and README's table: `embedserve bench report`."""

from pathlib import Path

from ..paths import README, REPORT_FOLDER, RESULTS
from .page import readme_table, report_page, update_readme
from .plots import draw_plots
from .results import SuiteResults

_SUITES = "suite-*.jsonl"


def newest_records() -> Path | None:
    """Returns the records of the last complete suite; None without any."""
    return max(RESULTS.glob(_SUITES), default=None)


def publish(records: Path, folder: Path = REPORT_FOLDER, readme: Path | None = README) -> Path:
    """Writes REPORT.md and its plots into a folder, and the table into a README.

    Returns:
        The path of REPORT.md.
    """
    results = SuiteResults.read(records)
    plots = draw_plots(results, folder / "pictures")
    page = folder / "REPORT.md"
    page.write_text(report_page(results, plots), "utf-8")
    if readme is not None:
        update_readme(readme, readme_table(results))
    return page
