"""The plot of a soak: memory by role, p99 and replicas over time."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ..faults.plot import STYLE
from ..record import Record

_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#666666")
_MINUTE_S = 60.0


def draw(record: Record, path: Path) -> None:
    """Draws the plot into a file, PNG or SVG by its name."""
    mpl.use("agg")
    with mpl.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        _figure(record).savefig(path, dpi=110, metadata={})


def _figure(record: Record) -> Figure:
    timeline = record["timeline"]
    minutes = np.array(timeline["time_s"]) / _MINUTE_S
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    memory, latency, replicas = figure.subplots(
        3, sharex=True, gridspec_kw={"height_ratios": (3, 1.4, 1)}
    )
    series = timeline["memory_mib"]
    largest = sorted(series, key=lambda role: -max(series[role]))
    names = largest[: len(_COLORS) - 1]
    for role, color in zip(names, _COLORS, strict=False):
        memory.plot(minutes, series[role], color=color, label=role)
    rest = np.sum([series[role] for role in largest[len(names) :]], axis=0)
    if np.ndim(rest):
        memory.plot(minutes, rest, color=_COLORS[-1], label="the others", linestyle="--")
    memory.set_ylim(bottom=0)
    memory.set_ylabel("own memory, MiB")
    memory.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.22))
    p99 = np.array(timeline["p99_ms"]).reshape(-1, 2)
    latency.plot(p99[:, 0] + 0.5, p99[:, 1], color=_COLORS[0], marker="o", markersize=3)
    latency.set_ylim(bottom=0)
    latency.set_ylabel("p99 of a minute, ms")
    replicas.step(minutes, timeline["replicas"], where="post", color=_COLORS[1])
    replicas.set_ylim(0, max(timeline["replicas"]) + 0.5)
    replicas.set_ylabel("replicas")
    replicas.set_xlabel("minutes")
    for axes in (memory, latency, replicas):
        axes.axvspan(0, record["warm_up_minutes"], color="#F0F0F0", zorder=0)
    figure.suptitle(
        f"{record['topology']}: {record['texts']:,} texts in {record['minutes']:g} minutes",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return figure
