"""A schedule of replicas that knows the future, as the bound for policies that don't."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt

from serve_app.autoscale.policy import Decision
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.scalers import Observation
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

#: Utilization by interactive texts, of which the cheapest is taken that keeps the objective.
_UTILIZATIONS = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
_WINDOWS_S = (10, 30)
#: Bulk tokens are spread over multiples of their target; most are computed earlier than planned.
_SPREADS = (1.0, 2.0)


class ScheduledScaler:
    """Follows a schedule with one number for each second."""

    def __init__(self, schedule: Sequence[int]) -> None:
        self._schedule = schedule

    def decide(self, seen: Observation) -> Decision:
        """See `Scaler`."""
        second = min(int(seen.now_s), len(self._schedule) - 1)
        return Decision(int(self._schedule[second]), "scheduled")


def simulate_oracle(
    trace: Trace,
    service: SimulatedService,
    *,
    target_queue_s: float,
    bulk_drain_target_s: float,
    seed: int = 0,
) -> SimulationResult:
    """Returns the simulation of the cheapest of these schedules that keeps the objective.

    A schedule has a number of replicas for each window of time: the smallest at which the
    interactive tokens of the window take at most a given share of the capacity, and at which the
    bulk tokens, spread over a time from their arrival, take the rest. Replicas are ordered early
    enough to be ready. Shares, windows and times are searched. The cheapest schedule has the
    fewest replica-hours among those whose p99 is at most `target_queue_s` for interactive texts
    and at most `bulk_drain_target_s` for bulk texts; if none keeps both, the one with the lowest
    interactive p99 is returned. Others may be cheaper: it is no proven optimum.
    """
    spreads = _SPREADS if trace.is_bulk.any() else _SPREADS[:1]
    best: SimulationResult | None = None
    best_rank = (math.inf, math.inf)
    for window_s, spread in product(_WINDOWS_S, spreads):
        low, high = 0, len(_UTILIZATIONS)
        while low < high:  # a lower utilization costs more and waits less
            middle = (low + high) // 2
            schedule = _schedule(
                trace, service, window_s, _UTILIZATIONS[middle], spread * bulk_drain_target_s
            )
            started = replace(service, initial_replicas=int(schedule[0]))
            result = simulate(trace, started, ScheduledScaler(schedule.tolist()), seed=seed)
            keeps = _keeps(result, target_queue_s, bulk_drain_target_s)
            rank = _rank(result, keeps)
            if rank < best_rank:
                best, best_rank = result, rank
            if keeps:
                high = middle
            else:
                low = middle + 1
    assert best is not None
    return best


def _keeps(result: SimulationResult, target_queue_s: float, bulk_drain_target_s: float) -> bool:
    waiting = result.waiting
    return (
        waiting["interactive"].p99 <= target_queue_s and waiting["bulk"].p99 <= bulk_drain_target_s
    )


def _rank(result: SimulationResult, keeps: bool) -> tuple[float, float]:
    return (0.0, result.replica_hours) if keeps else (1.0, result.waiting["interactive"].p99)


def _schedule(
    trace: Trace,
    service: SimulatedService,
    window_s: int,
    utilization: float,
    bulk_spread_s: float,
) -> npt.NDArray[np.int64]:
    capacity = service.capacity_tokens_per_s
    arriving = trace.tokens_per_second("interactive")
    windows = [arriving[i : i + window_s].mean() for i in range(0, arriving.size, window_s)]
    interactive = np.repeat(windows, window_s)[: arriving.size]
    spread_s = max(int(bulk_spread_s), 1)
    bulk = np.convolve(trace.tokens_per_second("bulk"), np.full(spread_s, 1 / spread_s))
    size = bulk.size if bulk.any() else arriving.size
    needed = np.zeros(size)
    needed[: arriving.size] = interactive
    replicas = np.maximum(needed / utilization, needed + bulk[:size]) / capacity
    ahead_s = math.ceil(service.startup_s) + 1
    padded = np.concatenate([replicas, np.zeros(ahead_s)])
    latest = np.lib.stride_tricks.sliding_window_view(padded, ahead_s + 1).max(axis=1)
    return _clipped(np.ceil(latest - 1e-9), service)


def _clipped(replicas: Iterable[float], service: SimulatedService) -> npt.NDArray[np.int64]:
    return np.array([service.bounds.clip(int(n)) for n in replicas], dtype=np.int64)
