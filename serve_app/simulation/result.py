"""What a simulation measures."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.types import Lane

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Percentiles of the time from arrival to the start of a text's batch, in seconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, waits_s: _Floats, weights: _Floats | None = None) -> "Waiting":
        """Returns the percentiles; 0 without texts."""
        if not waits_s.size:
            return cls(0.0, 0.0, 0.0)
        if weights is None:
            return cls(*(float(q) for q in np.quantile(waits_s, [0.5, 0.95, 0.99])))
        order = np.argsort(waits_s)
        total = np.cumsum(weights[order])
        if total[-1] <= 0:
            return cls(0.0, 0.0, 0.0)
        at = np.searchsorted(total, np.array([0.5, 0.95, 0.99]) * total[-1])
        return cls(*(float(q) for q in waits_s[order][np.minimum(at, total.size - 1)]))


@dataclass(frozen=True, slots=True)
class Timeline:
    """The values of each second; shape (seconds,)."""

    offered_tokens_per_s: _Floats
    running: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    p99_s: _Floats  #: waiting of the interactive texts that arrived in this second


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Costs and waiting of one trace with one policy."""

    waiting: dict[Lane, Waiting]
    replica_hours: float  #: from the order of a replica to its end
    refused_texts: int
    timeline: Timeline
    reasons: list[tuple[float, int, str]]  #: time, replicas and reason of each change
    #: Waiting of each text of the trace, NaN if it was refused; None: not simulated one by one.
    waits_s: _Floats | None = None
    #: From the arrival of each text to the end of its batch, like `waits_s`.
    latencies_s: _Floats | None = None

    @property
    def changes(self) -> int:
        """How often the target changed."""
        return int(np.count_nonzero(np.diff(self.timeline.target)))
