"""A plot of a trace: one row for each policy, with load and replicas, and the waiting time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from serve_app.simulation.comparison import Comparison
from serve_app.simulation.service import SimulatedService

_LOAD, _REPLICAS, _P99 = "#BBBBBB", "#0072B2", "#D55E00"
#: Waiting times below are drawn at this value of the logarithmic axis.
_MIN_P99_S = 0.01
_SMOOTHED_S = 10


def plot_comparisons(
    comparisons: Sequence[Comparison],
    service: SimulatedService,
    path: Path,
    *,
    target_queue_s: float,
) -> None:
    """Writes the plot of the policies of one trace; the file's suffix selects the format."""
    figure = Figure(figsize=(11, 1.7 * len(comparisons) + 0.6), layout="constrained")
    axes = figure.subplots(len(comparisons), 2, squeeze=False, sharex=True, sharey="col")
    for (left, right), item in zip(axes, comparisons, strict=True):
        timeline = item.result.timeline
        minutes = np.arange(timeline.running.size) / 60
        load = _smoothed(timeline.offered_tokens_per_s) / service.capacity_tokens_per_s
        left.fill_between(minutes, load, color=_LOAD, linewidth=0)
        left.step(minutes, timeline.running, where="post", color=_REPLICAS, linewidth=1)
        hours = item.result.replica_hours
        left.set_title(f"{item.policy}: {hours:.2f} replica-hours", loc="left", fontsize=9)
        right.semilogy(minutes, np.maximum(timeline.p99_s, _MIN_P99_S), color=_P99, linewidth=0.6)
        right.axhline(target_queue_s, color="black", linewidth=0.6, linestyle=":")
        p99_s = item.result.waiting["interactive"].p99
        right.set_title(f"interactive p99 of all: {p99_s:.3g} s", loc="left", fontsize=9)
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("minutes; load in replicas that it fills (gray), running (blue)")
    axes[-1, 1].set_xlabel("minutes; p99 of each second in seconds, the objective (dotted)")
    figure.suptitle(f"Autoscaling: {comparisons[0].trace}")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    kernel = np.full(_SMOOTHED_S, 1 / _SMOOTHED_S)
    return np.convolve(values, kernel, mode="same")
