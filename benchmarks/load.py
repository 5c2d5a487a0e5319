"""Puts load on a server and times it.

Open loop: requests are due at a given rate, whether or not earlier ones are answered, and the
time of each counts from when it was due. A server that stalls can't hide behind clients that
politely wait for it ("coordinated omission"; Tene, "How NOT to Measure Latency", 2013).
Closed loop: a given number of clients, each asking again as soon as it is answered; what comes
out is the throughput at that concurrency.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.connection import Connection
from benchmarks.target import Target

_PERCENTILES = (50, 90, 95, 99)

#: Told once a second: seconds gone, answers so far, failures so far.
Progress = Callable[[float, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load, for how long."""

    duration_s: float
    warmup_s: float = 1.0  #: load that isn't counted, before the rest
    rate: float | None = None  #: requests/s, open loop; None: closed loop
    connections: int = 8  #: closed loop: clients; open loop: the most that may be open
    timeout_s: float = 60.0  #: for one request; then it counts as failed
    seed: int = 0  #: of the arrival times


@dataclass(slots=True)
class Outcome:
    """What happened, request by request; times in seconds."""

    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  #: how late the generator itself was
    failures: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    seconds: float = 0.0
    cpu_share: float = 0.0  #: of one core, by the generator

    def summary(self) -> dict[str, float | int | dict[str, int] | bool]:
        """The figures: rates per second, latencies in milliseconds."""
        answered = len(self.latencies)
        figures: dict[str, float | int | dict[str, int] | bool] = {
            "requests_per_s": round(answered / self.seconds, 2),
            "texts_per_s": round(self.texts / self.seconds, 2),
            "answered": answered,
            "failed": dict(self.failures),
            "generator_cpu_share": round(self.cpu_share, 3),
            "generator_is_the_limit": self.generator_is_the_limit(),
        }
        if answered:
            for q, seconds in zip(
                _PERCENTILES, np.percentile(self.latencies, _PERCENTILES), strict=True
            ):
                figures[f"p{q}_ms"] = round(float(seconds) * 1000, 3)
            figures["max_ms"] = round(max(self.latencies) * 1000, 3)
        if self.lags:
            figures["generator_lag_p99_ms"] = round(float(np.percentile(self.lags, 99)) * 1000, 3)
        return figures

    def generator_is_the_limit(self) -> bool:
        """Whether these figures say more of the generator than of the server."""
        late = bool(self.lags) and float(np.percentile(self.lags, 99)) > 0.01
        return late or self.cpu_share > 0.9


class _Pool:
    """Connections to lend; one that broke is replaced by a new one."""

    def __init__(self, target: Target, most: int) -> None:
        self._target = target
        self._places = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    async def ask(self, request: bytes) -> int:
        """Sends a request over some connection; the status of its reply."""
        async with self._places:
            connection = self._idle.pop() if self._idle else None
            if connection is None or not connection.usable:
                connection = await Connection.open(self._target.address)
            try:
                reply = await connection.ask(request)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
            return reply.status

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class _Run:
    """One plan in progress."""

    def __init__(self, target: Target, requests: Iterator[list[str]], plan: Plan) -> None:
        self._target = target
        self._requests = requests
        self._plan = plan
        self._pool = _Pool(target, plan.connections)
        self._begin = time.perf_counter() + plan.warmup_s
        self._end = self._begin + plan.duration_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcome = Outcome(seconds=plan.duration_s)

    async def go(self, progress: Progress | None) -> Outcome:
        ticker = asyncio.create_task(self._tick(progress))
        cpu_begin, wall_begin = time.process_time(), time.perf_counter()
        if self._plan.rate is None:
            await asyncio.gather(*(self._client() for _ in range(self._plan.connections)))
        else:
            await self._arrivals(self._plan.rate)
        wall = time.perf_counter() - wall_begin
        self.outcome.cpu_share = (time.process_time() - cpu_begin) / wall
        await asyncio.gather(*self._tasks)
        ticker.cancel()
        self._pool.close()
        return self.outcome

    async def _client(self) -> None:
        while (now := time.perf_counter()) < self._end:
            await self._one(next(self._requests), now)

    async def _arrivals(self, rate: float) -> None:
        rng = random.Random(self._plan.seed)
        due = time.perf_counter()
        while due < self._end:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if due >= self._begin:
                self.outcome.lags.append(max(0.0, time.perf_counter() - due))
            task = asyncio.create_task(self._one(next(self._requests), due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += rng.expovariate(rate)  # arrivals of many independent clients: a Poisson process

    async def _one(self, texts: list[str], due: float) -> None:
        request = self._target.request(texts)
        failure = None
        try:
            async with asyncio.timeout(self._plan.timeout_s):
                status = await self._pool.ask(request)
            if status != 200:
                failure = str(status)
        except TimeoutError:
            failure = "timeout"
        except OSError as error:
            failure = type(error).__name__
        done = time.perf_counter()
        if failure is not None and self._plan.rate is None:
            await asyncio.sleep(0.01)  # a server that refuses needn't be asked in a tight loop
        if due < self._begin or (self._plan.rate is None and done > self._end):
            return  # warm-up, or the last answer of a closed loop, which came after the bell
        if failure is None:
            self.outcome.latencies.append(done - due)
            self.outcome.texts += len(texts)
        else:
            self.outcome.failures[failure] += 1

    async def _tick(self, progress: Progress | None) -> None:
        while progress is not None:
            await asyncio.sleep(1)
            gone = time.perf_counter() - self._begin + self._plan.warmup_s
            failed = sum(self.outcome.failures.values())
            progress(gone, len(self.outcome.latencies), failed)


async def run(
    target: Target,
    requests: Iterator[list[str]],
    plan: Plan,
    progress: Progress | None = None,
) -> Outcome:
    """Runs one plan against one server; open loop waits for every answer that is due."""
    return await _Run(target, requests, plan).go(progress)
