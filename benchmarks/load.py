"""The load generator: sends requests to a target and times the responses.

Open loop: requests are due at a given rate, independent of responses, and latency counts from the
moment a request was due. A stall of the server therefore shows in the latencies of all requests
that were due during it (no "coordinated omission"; Tene, "How NOT to Measure Latency", 2013).
Closed loop: each of a given number of clients sends its next request when the previous one is
answered; the result is the throughput at that concurrency. A request that lies only partly within
the measured interval counts with that part, so that throughput is exact for slow requests too.
"""

import asyncio
import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .target import Target
from .tokens import count_tokens
from .workloads import LoadShape

_PERCENTILES = (50, 90, 95, 99)
_MAX_LAG_S, _MAX_CPU_SHARE = 0.01, 0.9
_FAILURE_DELAY_S = 0.01


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of a run, reported once a second."""

    elapsed_s: float  #: since the start of the warm-up
    requests_per_s: float  #: answered since the last report
    p50_ms: float  #: of those requests; 0 without any
    p99_ms: float
    failed: int  #: since the start
    pending: int  #: requests that are due and not answered


OnProgress = Callable[[Progress], None]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load a run generates, and for how long."""

    duration_s: float
    warmup_s: float = 1.0  #: load before the measured interval
    rate: float | None = None  #: requests/s in an open loop; None: closed loop
    connections: int = 8  #: closed loop: clients; open loop: maximum of open connections
    timeout_s: float = 60.0  #: of one request; a request that exceeds it has failed
    seed: int = 0  #: of the arrival times
    shape: LoadShape | None = None  #: of the rate; None: constant

    @property
    def total_s(self) -> float:
        """The duration including the warm-up."""
        return self.warmup_s + self.duration_s

    def describe(self) -> dict[str, float | int | None]:
        """Returns the fields of a record that describe the plan. The workload implies the shape."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "shape")
        return {name: getattr(self, name) for name in names}


class Sample(NamedTuple):
    """A successful request."""

    texts: list[str]
    latency_s: float  #: in an open loop: since the request was due
    weight: float  #: the part of it that lies in the measured interval, at most 1


@dataclass(slots=True)
class Outcome:
    """The samples and failures of a run."""

    samples: list[Sample] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)  #: delays caused by the generator itself
    failures: Counter[str] = field(default_factory=Counter)
    duration_s: float = 0.0  #: the interval in which the samples were answered
    cpu_share: float = 0.0  #: of one core, used by the generator

    @property
    def latencies_s(self) -> list[float]:
        """The latency of each sample."""
        return [sample.latency_s for sample in self.samples]

    @property
    def requests_per_s(self) -> float:
        """The throughput."""
        return sum(sample.weight for sample in self.samples) / self.duration_s

    def summary(self) -> dict[str, float | int | dict[str, int] | bool]:
        """Returns the metrics of a record: rates per second, latencies in milliseconds."""
        latencies_s = self.latencies_s
        tokens = count_tokens(sample.texts for sample in self.samples)
        weights = [sample.weight for sample in self.samples]
        texts = sum(sample.weight * len(sample.texts) for sample in self.samples)
        metrics: dict[str, float | int | dict[str, int] | bool] = {
            "requests_per_s": round(self.requests_per_s, 2),
            "texts_per_s": round(texts / self.duration_s, 2),
            "tokens_per_s": round(float(np.dot(tokens, weights)) / self.duration_s),
            "answered": len(latencies_s),
            "failed": dict(self.failures),
            "generator_cpu_share": round(self.cpu_share, 3),
            "generator_is_the_limit": self.generator_is_the_limit(),
        }
        if latencies_s:
            percentiles = np.percentile(latencies_s, _PERCENTILES)
            for q, latency_s in zip(_PERCENTILES, percentiles, strict=True):
                metrics[f"p{q}_ms"] = round(float(latency_s) * 1000, 3)
            metrics["max_ms"] = round(max(latencies_s) * 1000, 3)
        if self.lags_s:
            lag_s = float(np.percentile(self.lags_s, 99))
            metrics["generator_lag_p99_ms"] = round(lag_s * 1000, 3)
        return metrics

    def generator_is_the_limit(self) -> bool:
        """Whether the generator limited the throughput rather than the server."""
        is_late = bool(self.lags_s) and float(np.percentile(self.lags_s, 99)) > _MAX_LAG_S
        return is_late or self.cpu_share > _MAX_CPU_SHARE


class _LoadRun:
    """One plan in progress."""

    def __init__(
        self, target: Target, requests: Iterator[list[str]], plan: Plan, clock: Clock
    ) -> None:
        self._client = target.client(plan.connections)
        self._requests = requests
        self._plan = plan
        self._clock = clock
        self._start = clock()
        self._measure_from = self._start + plan.warmup_s
        self._measure_until = self._measure_from + plan.duration_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_response = self._measure_from
        self._pending = 0
        self._recent_latencies_s: list[float] = []
        self.outcome = Outcome(duration_s=plan.duration_s)

    async def run(self, on_progress: OnProgress | None) -> Outcome:
        reporter = asyncio.create_task(self._report(on_progress))
        cpu_start, wall_start = time.process_time(), self._clock()
        if self._plan.rate is None:
            await asyncio.gather(
                *(self._closed_loop_client() for _ in range(self._plan.connections))
            )
        else:
            await self._open_loop(self._plan.rate)
        wall_s = self._clock() - wall_start
        self.outcome.cpu_share = (time.process_time() - cpu_start) / wall_s
        await asyncio.gather(*self._tasks)
        # An overloaded server answers after the end of the interval, which lowers its throughput.
        if self._plan.rate is not None:
            last_s = self._last_response - self._measure_from
            self.outcome.duration_s = max(self._plan.duration_s, last_s)
        reporter.cancel()
        self._client.close()
        return self.outcome

    async def _closed_loop_client(self) -> None:
        while (now := self._clock()) < self._measure_until:
            await self._send(next(self._requests), now)

    async def _open_loop(self, rate: float) -> None:
        # Arrivals of many independent clients are a Poisson process. For a varying rate,
        # candidates at its peak are thinned out (Lewis and Shedler, 1979).
        rng = random.Random(self._plan.seed)
        shape = self._plan.shape
        peak_rate = rate if shape is None else rate * shape.peak_factor
        due = self._start
        while (due := due + rng.expovariate(peak_rate)) < self._measure_until:
            if shape is not None:
                factor = shape.rate_factor(self._elapsed_share(due))
                if rng.random() > factor / shape.peak_factor:
                    continue
            delay_s = due - self._clock()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            if due >= self._measure_from:
                self.outcome.lags_s.append(max(0.0, self._clock() - due))
            task = asyncio.create_task(self._send(next(self._requests), due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _elapsed_share(self, now: float) -> float:
        """Returns the elapsed share of the measured interval; 0 during the warm-up."""
        return max(0.0, (now - self._measure_from) / self._plan.duration_s)

    async def _send(self, texts: list[str], due: float) -> None:
        self._pending += 1
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                failure = await self._client.send(texts)
        except TimeoutError:
            failure = "timeout"
        except OSError as error:
            failure = type(error).__name__
        self._pending -= 1
        done = self._clock()
        if failure is None:
            self._recent_latencies_s.append(done - due)
        elif self._plan.rate is None:
            await asyncio.sleep(_FAILURE_DELAY_S)  # or failures at once would make a busy loop
        weight = self._weight(due, done)
        if not weight:
            return
        if failure is None:
            self._last_response = done
            self.outcome.samples.append(Sample(texts, done - due, weight))
        else:
            self.outcome.failures[failure] += 1

    def _weight(self, due: float, done: float) -> float:
        if self._plan.rate is not None:
            return float(self._measure_from <= due < self._measure_until)
        overlap_s = min(done, self._measure_until) - max(due, self._measure_from)
        return max(0.0, overlap_s / (done - due))

    async def _report(self, on_progress: OnProgress | None) -> None:
        while on_progress is not None:
            last = self._clock()
            await asyncio.sleep(1)
            now = self._clock()
            latencies_s, self._recent_latencies_s = self._recent_latencies_s, []
            p50_s, p99_s = np.percentile(latencies_s, (50, 99)) if latencies_s else (0.0, 0.0)
            on_progress(
                Progress(
                    elapsed_s=now - self._start,
                    requests_per_s=len(latencies_s) / (now - last),
                    p50_ms=float(p50_s) * 1000,
                    p99_ms=float(p99_s) * 1000,
                    failed=sum(self.outcome.failures.values()),
                    pending=self._pending,
                )
            )


async def run_load(
    target: Target,
    requests: Iterator[list[str]],
    plan: Plan,
    on_progress: OnProgress | None = None,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Runs a plan against a target. An open loop waits for every request that was due.

    Args:
        target: the server under load.
        requests: the texts of each request.
        plan: how much load, and for how long.
        on_progress: receives the state of the run once a second.
        clock: returns seconds; it must agree with the delays of the running event loop.
    """
    return await _LoadRun(target, requests, plan, clock).run(on_progress)
