"""Puts load on a server and times it.

Open loop: requests are due at a given rate, whether or not earlier ones are answered, and the
time of each counts from when it was due. A server that stalls can't hide behind clients that
politely wait for it ("coordinated omission"; Tene, "How NOT to Measure Latency", 2013).
Closed loop: a given number of clients, each asking again as soon as it is answered; what comes
out is the throughput at that concurrency. A request that lies in the time that counts with only a
part of its own time counts as that part: else slow requests would be rounded to whole ones.
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
from .workloads import Shape

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a run goes, told once a second."""

    gone_s: float  #: since the start of the warm-up
    requests_per_s: float  #: answered since the last pulse
    p50_ms: float  #: of those; 0 without any
    p99_ms: float
    failed: int  #: since the start
    waiting: int  #: requests that are due and not answered


Progress = Callable[[Pulse], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load, for how long."""

    duration_s: float
    warmup_s: float = 1.0  #: load that isn't counted, before the rest
    rate: float | None = None  #: requests/s, open loop; None: closed loop
    connections: int = 8  #: closed loop: clients; open loop: the most that may be open
    timeout_s: float = 60.0  #: for one request; then it counts as failed
    seed: int = 0  #: of the arrival times
    shape: Shape | None = None  #: how the rate goes up and down in time; None: it is even

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.warmup_s + self.duration_s

    def describe(self) -> dict[str, float | int | None]:
        """What a record tells of it; the shape is the workload's."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "shape")
        return {name: getattr(self, name) for name in names}


class Answer(NamedTuple):
    """One request that was answered."""

    texts: list[str]
    latency: float  #: in seconds; open loop: since it was due
    share: float  #: how much of it lies in the time that counts, at most 1


@dataclass(slots=True)
class Outcome:
    """What happened, request by request; times in seconds."""

    answers: list[Answer] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  #: how late the generator itself was
    failures: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  #: in which that was answered
    cpu_share: float = 0.0  #: of one core, by the generator

    @property
    def latencies(self) -> list[float]:
        """How long each answer took."""
        return [answer.latency for answer in self.answers]

    @property
    def requests_per_s(self) -> float:
        """Answers in a second."""
        return sum(answer.share for answer in self.answers) / self.seconds

    def summary(self) -> dict[str, float | int | dict[str, int] | bool]:
        """The figures: rates per second, latencies in milliseconds."""
        latencies = self.latencies
        tokens = count_tokens(answer.texts for answer in self.answers)
        shares = [answer.share for answer in self.answers]
        texts = sum(answer.share * len(answer.texts) for answer in self.answers)
        figures: dict[str, float | int | dict[str, int] | bool] = {
            "requests_per_s": round(self.requests_per_s, 2),
            "texts_per_s": round(texts / self.seconds, 2),
            "tokens_per_s": round(float(np.dot(tokens, shares)) / self.seconds),
            "answered": len(latencies),
            "failed": dict(self.failures),
            "generator_cpu_share": round(self.cpu_share, 3),
            "generator_is_the_limit": self.generator_is_the_limit(),
        }
        if latencies:
            for q, seconds in zip(
                _PERCENTILES, np.percentile(latencies, _PERCENTILES), strict=True
            ):
                figures[f"p{q}_ms"] = round(float(seconds) * 1000, 3)
            figures["max_ms"] = round(max(latencies) * 1000, 3)
        if self.lags:
            figures["generator_lag_p99_ms"] = round(float(np.percentile(self.lags, 99)) * 1000, 3)
        return figures

    def generator_is_the_limit(self) -> bool:
        """Whether these figures say more of the generator than of the server."""
        late = bool(self.lags) and float(np.percentile(self.lags, 99)) > 0.01
        return late or self.cpu_share > 0.9


class _Run:
    """One plan in progress."""

    def __init__(self, target: Target, requests: Iterator[list[str]], plan: Plan) -> None:
        self._client = target.client(plan.connections)
        self._requests = requests
        self._plan = plan
        self._start = time.perf_counter()
        self._begin = self._start + plan.warmup_s
        self._end = self._begin + plan.duration_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._last = self._begin
        self._waiting = 0
        self._lately: list[float] = []
        self.outcome = Outcome(seconds=plan.duration_s)

    async def go(self, progress: Progress | None) -> Outcome:
        ticker = asyncio.create_task(self._tick(progress))
        cpu_begin, wall_begin = time.process_time(), time.perf_counter()
        if self._plan.rate is None:
            await asyncio.gather(*(self._one_client() for _ in range(self._plan.connections)))
        else:
            await self._arrivals(self._plan.rate)
        wall = time.perf_counter() - wall_begin
        self.outcome.cpu_share = (time.process_time() - cpu_begin) / wall
        await asyncio.gather(*self._tasks)
        # Open loop: what a server answers late, it took that long for.
        if self._plan.rate is not None:
            self.outcome.seconds = max(self._plan.duration_s, self._last - self._begin)
        ticker.cancel()
        self._client.close()
        return self.outcome

    async def _one_client(self) -> None:
        while (now := time.perf_counter()) < self._end:
            await self._one(next(self._requests), now)

    async def _arrivals(self, rate: float) -> None:
        # Arrivals of many independent clients are a Poisson process; where the rate changes in
        # time, candidates at its peak are thinned out (Lewis and Shedler, 1979).
        rng = random.Random(self._plan.seed)
        shape = self._plan.shape
        peak = rate if shape is None else rate * shape.peak
        due = self._start
        while (due := due + rng.expovariate(peak)) < self._end:
            if shape is not None and rng.random() > shape.at(self._gone(due)) / shape.peak:
                continue
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if due >= self._begin:
                self.outcome.lags.append(max(0.0, time.perf_counter() - due))
            task = asyncio.create_task(self._one(next(self._requests), due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _gone(self, now: float) -> float:
        """The share of the time that counts that is over, 0 during the warm-up."""
        return max(0.0, (now - self._begin) / self._plan.duration_s)

    async def _one(self, texts: list[str], due: float) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                failure = await self._client.ask(texts)
        except TimeoutError:
            failure = "timeout"
        except OSError as error:
            failure = type(error).__name__
        self._waiting -= 1
        done = time.perf_counter()
        if failure is None:
            self._lately.append(done - due)
        elif self._plan.rate is None:
            await asyncio.sleep(0.01)  # a server that refuses needn't be asked in a tight loop
        share = self._share(due, done)
        if not share:
            return
        if failure is None:
            self._last = done
            self.outcome.answers.append(Answer(texts, done - due, share))
        else:
            self.outcome.failures[failure] += 1

    def _share(self, due: float, done: float) -> float:
        """How much of a request counts."""
        if self._plan.rate is not None:
            return float(self._begin <= due < self._end)
        inside = min(done, self._end) - max(due, self._begin)
        return max(0.0, inside / (done - due))

    async def _tick(self, progress: Progress | None) -> None:
        while progress is not None:
            before = time.perf_counter()
            await asyncio.sleep(1)
            now = time.perf_counter()
            lately, self._lately = self._lately, []
            p50, p99 = np.percentile(lately, (50, 99)) if lately else (0.0, 0.0)
            progress(
                Pulse(
                    gone_s=now - self._start,
                    requests_per_s=len(lately) / (now - before),
                    p50_ms=float(p50) * 1000,
                    p99_ms=float(p99) * 1000,
                    failed=sum(self.outcome.failures.values()),
                    waiting=self._waiting,
                )
            )


async def run(
    target: Target,
    requests: Iterator[list[str]],
    plan: Plan,
    progress: Progress | None = None,
) -> Outcome:
    """Runs one plan against one server; open loop waits for every answer that is due."""
    return await _Run(target, requests, plan).go(progress)
