"""A fluid approximation of the simulator, for loads with too many texts to simulate each.

Texts are a fluid with a rate for each second, and all replicas share one queue for each lane. Its
results come from the same policies.
"""

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from serve_app.autoscale.fleet_load import FleetLoad
from serve_app.simulation.result import SimulationResult, Timeline, Waiting
from serve_app.simulation.scalers import Observation, Scaler
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.trace import Trace

#: Traces with more texts are simulated as a fluid.
MAX_EXACT_TEXTS = 5_000_000
#: Points of the distribution of the waiting time in each second.
_QUANTILES = (np.arange(50) + 0.5) / 50

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RateTrace:
    """Arrival rates for each second; arrays have shape (seconds,)."""

    name: str
    interactive_tokens_per_s: _Floats
    bulk_tokens_per_s: _Floats
    tokens_per_text: float  #: mean of interactive texts
    bulk_request_tokens: float = 12_800.0  #: mean size of bulk requests

    @classmethod
    def of(cls, trace: Trace) -> Self:
        """Returns the rates of a trace."""
        interactive = trace.tokens[~trace.is_bulk]
        starts = trace.request_starts
        bulk_requests = int(trace.is_bulk[starts].sum())
        bulk_tokens = float(trace.tokens[trace.is_bulk].sum())
        return cls(
            trace.name,
            trace.tokens_per_second("interactive"),
            trace.tokens_per_second("bulk"),
            float(interactive.mean()) if interactive.size else 1.0,
            bulk_tokens / bulk_requests if bulk_requests else 1.0,
        )

    def scaled(self, factor: float) -> Self:
        """Returns `factor` times the rates."""
        return replace(
            self,
            interactive_tokens_per_s=self.interactive_tokens_per_s * factor,
            bulk_tokens_per_s=self.bulk_tokens_per_s * factor,
        )


def simulate_fluid(rates: RateTrace, service: SimulatedService, scaler: Scaler) -> SimulationResult:
    """Runs the service on rates; see `simulate`. Nothing is refused.

    A text waits for the fluid before it. While there is none, it waits for a running batch if all
    replicas are busy, of which `_all_busy` estimates the probability.
    """
    return _FluidSimulation(rates, service, scaler).run()


class _FluidSimulation:
    def __init__(self, rates: RateTrace, service: SimulatedService, scaler: Scaler) -> None:
        self._rates, self._service, self._scaler = rates, service, scaler
        self._capacity = service.capacity_tokens_per_s
        self._running = self._target = service.bounds.clip(service.initial_replicas)
        self._starting = deque[list[float]]()  # time of readiness, number
        self._queued = [0.0, 0.0]
        self._served: tuple[list[float], list[float]] = ([], [])
        self._batch_waits: list[tuple[float, float]] = []  # probability, longest
        self._rows: list[tuple[int, int]] = []
        self._replica_s = 0.0
        self._reasons: list[tuple[float, int, str]] = []

    def run(self) -> SimulationResult:
        """Runs until the queues are empty."""
        arrivals = (self._rates.interactive_tokens_per_s, self._rates.bulk_tokens_per_s)
        second, seconds = 0, arrivals[0].size
        while second < seconds or max(self._queued) > 1e-6:
            now = tuple(float(a[second]) if second < seconds else 0.0 for a in arrivals)
            self._step(float(second), now[0], now[1])
            second += 1
        return self._result()

    def _step(self, start_s: float, interactive: float, bulk: float) -> None:
        while self._starting and self._starting[0][0] <= start_s:
            self._running += int(self._starting.popleft()[1])
        self._replica_s += self._running + sum(item[1] for item in self._starting)
        total = self._running * self._capacity
        served_interactive = min(self._queued[0] + interactive, total)
        served_bulk = min(self._queued[1] + bulk, total - served_interactive)
        self._queued[0] += interactive - served_interactive
        self._queued[1] += bulk - served_bulk
        self._served[0].append(served_interactive)
        self._served[1].append(served_bulk)
        wait = self._batch_wait(interactive, served_bulk)
        self._batch_waits.append(wait)
        self._rows.append((self._running, self._target))
        self._scale(start_s + 1, interactive, bulk, wait)

    def _batch_wait(self, interactive: float, served_bulk: float) -> tuple[float, float]:
        """Returns the probability that a text waits for a running batch, and its duration."""
        cost, tokens = self._service.cost, self._rates.tokens_per_text
        target_s = self._service.settings.batch_target_s
        if not self._running:
            return 1.0, target_s
        texts = interactive / tokens / self._running
        single_s = cost.seconds(tokens)
        bulk_share = served_bulk / (self._running * self._capacity)
        if texts * single_s + bulk_share >= 1:
            # Batches grow until they hold what arrives while they run.
            spare = 1 - texts * cost.token_s * tokens / self._service.fill
            batch_s = cost.fixed_s / spare if spare > 0 else math.inf
            return 1.0, max(single_s, min(batch_s, target_s), target_s if bulk_share else 0.0)
        busy = _all_busy(texts * single_s + bulk_share, self._running)
        return busy, target_s if bulk_share > 0 else single_s

    def _scale(
        self, now_s: float, interactive: float, bulk: float, wait: tuple[float, float]
    ) -> None:
        running = self._running
        total = max(running * self._capacity, 1e-9)
        served = self._served[0][-1] + self._served[1][-1]
        single_s = self._service.cost.seconds(self._rates.tokens_per_text)
        texts_per_s = interactive / self._rates.tokens_per_text
        busy = min(max(served / total, texts_per_s * single_s / max(running, 1)), 1.0)
        computing = texts_per_s * (wait[0] * wait[1] / 2 + single_s)
        load = FleetLoad(
            replicas=running,
            reported=running,
            stuck=0,
            saturated=running if served >= 0.99 * total else 0,
            queued_interactive_tokens=self._queued[0] + computing * self._rates.tokens_per_text,
            queued_bulk_tokens=self._queued[1],
            oldest_interactive_s=self._queued[0] / total + wait[0] * wait[1],
            offered_interactive_tokens_per_s=interactive,
            offered_bulk_tokens_per_s=bulk,
            served_tokens_per_s=served,
            busy_replicas=busy * running,
            capacity_tokens_per_s=self._capacity,
            startup_s=self._service.startup_s,
        )
        requests = computing + self._queued[0] / self._rates.tokens_per_text
        requests += math.ceil(self._queued[1] / self._rates.bulk_request_tokens)
        seen = Observation(now_s, running, self._target, self._service.bounds, load, requests)
        decision = self._scaler.decide(seen)
        target = self._service.bounds.clip(decision.replicas)
        if target != self._target:
            self._reasons.append((now_s, target, decision.reason))
            self._change(target - self._target, now_s)
            self._target = target

    def _change(self, replicas: int, now_s: float) -> None:
        """Starts replicas, or stops the newest ones if negative."""
        if replicas > 0:
            self._starting.append([now_s + self._service.startup_s, replicas])
        while replicas < 0 and self._starting:
            newest = self._starting[-1]
            stopped = min(-replicas, int(newest[1]))
            newest[1] -= stopped
            replicas += stopped
            if not newest[1]:
                self._starting.pop()
        self._running += min(replicas, 0)

    def _result(self) -> SimulationResult:
        arrivals = (self._rates.interactive_tokens_per_s, self._rates.bulk_tokens_per_s)
        seconds = arrivals[0].size
        queue_s = _fluid_wait(arrivals[0], np.array(self._served[0]))
        probability, longest_s = np.array(self._batch_waits[:seconds]).T
        # With probability 1 - p there is no wait, else it is uniform.
        positive = (_QUANTILES[None, :] - (1 - probability)[:, None]) / np.maximum(
            probability, 1e-9
        )[:, None]
        waits = queue_s[:, None] + np.maximum(positive, 0.0) * longest_s[:, None]
        weights = np.repeat(arrivals[0] / _QUANTILES.size, _QUANTILES.size)
        rows = np.array(self._rows[:seconds], dtype=np.int64)
        return SimulationResult(
            waiting={
                "interactive": Waiting.of(waits.ravel(), weights),
                "bulk": Waiting.of(
                    _fluid_wait(arrivals[1], np.array(self._served[1])), arrivals[1]
                ),
            },
            replica_hours=self._replica_s / 3600,
            refused_texts=0,
            timeline=Timeline(arrivals[0] + arrivals[1], rows[:, 0], rows[:, 1], waits[:, -1]),
            reasons=self._reasons,
        )


def _all_busy(utilization: float, replicas: int) -> float:
    """Approximates the probability that all of `replicas` are busy (Sakasegawa 1977)."""
    return float(utilization ** (math.sqrt(2 * (replicas + 1)) - 1)) if utilization > 0 else 0.0


def _fluid_wait(arriving: _Floats, served: _Floats) -> _Floats:
    """Returns how long the fluid that arrives in the middle of each second waits."""
    arrived = np.concatenate([[0.0], np.cumsum(arriving)])
    middle = (arrived[:-1] + arrived[1:]) / 2
    done = np.concatenate([[0.0], np.cumsum(served)])
    served_s = np.interp(middle, done + np.arange(done.size) * 1e-9, np.arange(done.size))
    waits: _Floats = np.maximum(served_s - (np.arange(arriving.size) + 0.5), 0.0)
    return np.where(arriving > 0, waits, 0.0)
