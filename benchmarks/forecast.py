"""A recorded trace next to its simulation: what the simulator predicts, and what was measured."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

_LOAD, _MEASURED, _SIMULATED = "#BBBBBB", "#0072B2", "#D55E00"
#: Waiting times below are drawn at this value of the logarithmic axis.
_MIN_WAIT_S = 0.01

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Run:
    """A trace as it was measured or simulated."""

    waiting_s: _Floats  #: of each text, without its own batch; NaN: it wasn't computed
    running: npt.NDArray[np.int64]  #: replicas in each second

    def percentile(self, q: float) -> float:
        """Returns a percentile of the waiting time of all texts, in seconds."""
        return float(np.nanpercentile(self.waiting_s, q))

    def by_second(self, arrival_s: _Floats, q: float) -> _Floats:
        """Returns a percentile of the texts of each second; NaN without texts."""
        seconds = self.running.size
        edges = np.searchsorted(arrival_s, np.arange(seconds + 1))
        parts = [self.waiting_s[a:b] for a, b in pairwise(edges)]
        return np.array([np.nanpercentile(p, q) if np.isfinite(p).any() else np.nan for p in parts])


def plot_runs(
    path: Path,
    title: str,
    arrival_s: _Floats,
    load: _Floats,
    measured: Run,
    simulated: Run,
) -> None:
    """Writes a plot: load and replicas above, the p95 of each second below.

    Args:
        path: the file; its suffix selects the format.
        title: of the plot.
        arrival_s: of each text.
        load: of each second, in replicas that it fills.
        measured: what the service did.
        simulated: what the simulator predicts.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = np.arange(load.size)
    above.fill_between(seconds, load, color=_LOAD, linewidth=0, label="load")
    for name, run, color in (
        ("measured", measured, _MEASURED),
        ("simulated", simulated, _SIMULATED),
    ):
        above.step(seconds, run.running[: load.size], where="post", color=color, label=name)
        waits_s = np.maximum(run.by_second(arrival_s, 95)[: load.size], _MIN_WAIT_S)
        of_all = f"{name}: {run.percentile(95):.3g} s of all"
        below.semilogy(seconds, waits_s, color=color, linewidth=1, label=of_all)
    above.set_ylabel("replicas")
    above.set_ylim(bottom=0)
    below.set_ylabel("p95 of the waiting time in seconds")
    below.set_xlabel("seconds")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
