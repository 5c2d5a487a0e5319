"""The plot of FAULTS.md: seconds to recover, and failed requests, of each fault."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ..record import Record
from .catalog import FAULTS
from .experiment import RECOVERY_TIMEOUT_S
from .records import broken_requests, order, read_newest

_COLORS = {"separate": "#0072B2", "colocated": "#E69F00"}
#: Of all plots of a service under load, as matplotlib's settings.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "embedserve",  # makes the ids in the SVG reproducible
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
}


def draw(results: Path, folder: Path) -> None:
    """Draws `faults.svg` and `faults.png` into a folder from the records in another."""
    mpl.use("svg")
    with mpl.rc_context(STYLE):
        figure = _figure([r for r in order(read_newest(results), FAULTS) if not r["problem"]])
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "faults.svg", metadata={"Date": None})
        figure.savefig(folder / "faults.png", dpi=120, metadata={"Software": None})


def _figure(records: Sequence[Record]) -> Figure:
    names = [*dict.fromkeys(record["fault"] for record in records)]
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for topology, color in _COLORS.items():
        rows = [record for record in records if record["topology"] == topology]
        for is_broken, marker in ((False, "o"), (True, "X")):
            chosen = [row for row in rows if bool(broken_requests(row)) is is_broken]
            if not chosen:
                continue
            axes.scatter(
                [_recovery_s(row) for row in chosen],
                [names.index(row["fault"]) for row in chosen],
                color=color,
                marker=marker,
                label=f"{topology}, {'requests failed' if is_broken else 'no request failed'}",
                alpha=0.8,
                zorder=3,
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.1, RECOVERY_TIMEOUT_S * 1.2)
    axes.set_xticks([0, 1, 2, 5, 10, 20, 60], ["0", "1", "2", "5", "10", "20", "60"])
    axes.set_xlabel("seconds from the end of the fault until every request is right within 1 s")
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    spared = sum(not broken_requests(record) for record in records)
    figure.suptitle(
        f"In {spared} of {len(records)} experiments, no request failed",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure


def _recovery_s(record: Record) -> float:
    recovery_s = record["recovery_s"]
    return RECOVERY_TIMEOUT_S if recovery_s is None else float(recovery_s)
