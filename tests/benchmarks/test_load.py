"""The load generator against servers of known behavior."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import repeat

import pytest

from benchmarks.client import LoadClient
from benchmarks.load import Clock, OnProgress, Outcome, Plan, Progress, Sample, run_load
from benchmarks.target import HttpTarget
from benchmarks.workloads import WORKLOADS
from tests.virtual_time import run_in_virtual_time

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Handler = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[HttpTarget]:
    """A server whose responses `handler` returns, one request at a time for each connection."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                writer.write(await handler(await reader.readexactly(length)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield HttpTarget(f"http://{host}:{port}")
    server.close()
    for task in filter(None, tasks):
        task.cancel()
    await asyncio.wait(filter(None, tasks))
    await asyncio.sleep(0)


def requests() -> Iterator[list[str]]:
    return repeat(["a", "b"])


async def respond_at_once(body: bytes) -> bytes:
    return OK


Respond = Callable[[], Awaitable[str | None]]


@dataclass(frozen=True)
class VirtualTarget(HttpTarget):
    """A server in this process: `respond` returns the reason of a failure."""

    respond: Respond = field(kw_only=True)

    def client(self, max_connections: int) -> LoadClient:
        return _VirtualClient(self.respond, max_connections)


class _VirtualClient:
    def __init__(self, respond: Respond, max_connections: int) -> None:
        self._respond = respond
        self._connections = asyncio.Semaphore(max_connections)

    async def send(self, texts: list[str]) -> str | None:
        async with self._connections:
            return await self._respond()

    def close(self) -> None:
        pass


def simulate(respond: Respond, plan: Plan, on_progress: OnProgress | None = None) -> Outcome:
    """Returns the outcome of a plan in virtual time, whatever the speed of the machine is."""

    async def run(clock: Clock) -> Outcome:
        target = VirtualTarget("http://virtual", respond=respond)
        return await run_load(target, requests(), plan, on_progress, clock)

    return run_in_virtual_time(run)


def respond_after(delay_s: float) -> Respond:
    async def respond() -> None:
        await asyncio.sleep(delay_s)

    return respond


def test_the_summary_counts_requests_texts_and_tokens() -> None:
    plan = Plan(1.0, warmup_s=0.5, connections=2)
    metrics = simulate(respond_after(0.05), plan).summary()
    assert metrics["requests_per_s"] == 40
    assert metrics["texts_per_s"] == 80
    assert metrics["tokens_per_s"] == 240  # CLS, SEP
    assert metrics["answered"] == pytest.approx(40, abs=2)  # two may lie partly in the interval
    assert metrics["p50_ms"] == metrics["max_ms"] == pytest.approx(50, abs=0.01)
    assert metrics["failed"] == {}


async def test_requests_are_sent_over_http() -> None:
    async with serving(respond_at_once) as target:
        outcome = await run_load(target, requests(), Plan(0.5, warmup_s=0, rate=40))
    assert len(outcome.latencies_s) > 10
    assert outcome.failures == {}


def test_an_open_loop_keeps_its_rate() -> None:
    outcome = simulate(respond_after(0.5), Plan(2.0, warmup_s=0.2, rate=200, connections=1000))
    assert outcome.lags_s == [0.0] * len(outcome.latencies_s)
    assert outcome.latencies_s == pytest.approx([0.5] * len(outcome.latencies_s))
    assert len(outcome.latencies_s) == pytest.approx(400, abs=80)  # Poisson: 20 is one sigma


def test_a_request_counts_with_its_part_in_the_measured_interval() -> None:
    """Two clients and responses after half a second: 4 requests/s in an interval of any length."""
    outcome = simulate(respond_after(0.5), Plan(0.7, warmup_s=0.3, connections=2))
    assert outcome.requests_per_s == pytest.approx(4)
    assert sum(sample.weight for sample in outcome.samples) < len(outcome.samples)


def test_late_responses_lower_the_throughput() -> None:
    """40 requests/s for a second take a server that handles 20 requests/s two seconds."""
    lock = asyncio.Lock()
    replied_at: list[float] = []

    async def respond_slowly() -> None:
        async with lock:
            await asyncio.sleep(0.05)
            replied_at.append(asyncio.get_running_loop().time())

    outcome = simulate(respond_slowly, Plan(1.0, warmup_s=0, rate=40, connections=64))
    assert replied_at[-1] > 1.5
    assert outcome.requests_per_s == pytest.approx(len(replied_at) / replied_at[-1])
    assert outcome.requests_per_s == pytest.approx(20, rel=0.05)


def test_a_ramp_sends_three_quarters_in_its_second_half() -> None:
    arrivals: list[float] = []

    async def record_arrival() -> None:
        arrivals.append(asyncio.get_running_loop().time())

    simulate(record_arrival, Plan(2.0, warmup_s=0, rate=200, shape=WORKLOADS["ramp"].shape))
    assert len(arrivals) == pytest.approx(400, abs=80)
    late = sum(1 for arrival in arrivals if arrival > 1.0)
    assert late / len(arrivals) == pytest.approx(0.75, abs=0.08)


def test_progress_is_reported_every_second() -> None:
    reports: list[Progress] = []
    simulate(respond_after(0.01), Plan(2.1, warmup_s=0, rate=50), reports.append)
    assert [progress.elapsed_s for progress in reports] == pytest.approx([1, 2])
    assert reports[1].requests_per_s == pytest.approx(50, abs=25)  # Poisson
    assert reports[1].p50_ms == pytest.approx(10)
    assert reports[1].p99_ms == pytest.approx(10)
    assert reports[1].failed == 0


def test_a_stall_delays_every_request_that_was_due_during_it() -> None:
    """A stall of 1 s delays a quarter of the requests of 4 s.

    Their delays are uniform between 0 and 1 s, so the slowest percent waits for at least
    (25 - 1) / 25 of the stall: p99 is 0.96 s. A closed loop would have one slow request on each
    connection, and a p99 near zero.
    """

    async def stall() -> None:
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(2.5 - now_s if 1.5 <= now_s < 2.5 else 0)

    plan = Plan(4.0, warmup_s=0.2, rate=250, connections=8)
    open_loop = simulate(stall, plan)
    p99_s = float(open_loop.summary()["p99_ms"]) / 1000  # type: ignore[arg-type]
    assert p99_s == pytest.approx(0.96, abs=0.05)
    delayed = sum(1 for latency_s in open_loop.latencies_s if latency_s > 0.05)
    assert delayed / len(open_loop.latencies_s) == pytest.approx(0.95 / 4, abs=0.04)


async def test_errors_count_as_failures_and_have_no_latency() -> None:
    responses = iter([b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", b"nonsense\r\n\r\n"])

    async def fail_twice(body: bytes) -> bytes:
        return next(responses, OK)

    async with serving(fail_twice) as target:
        outcome = await run_load(target, requests(), Plan(0.3, warmup_s=0, rate=40))
    assert outcome.failures == {"429": 1, "ConnectionError": 1}
    assert outcome.latencies_s


async def test_requests_time_out() -> None:
    async def never_respond(body: bytes) -> bytes:
        await asyncio.sleep(60)
        return OK

    async with serving(never_respond) as target:
        plan = Plan(0.2, warmup_s=0, rate=20, timeout_s=0.1)
        outcome = await run_load(target, requests(), plan)
    assert set(outcome.failures) == {"timeout"}
    assert outcome.latencies_s == []


async def test_a_refused_connection_is_a_failure() -> None:
    plan = Plan(0.1, warmup_s=0, rate=100)
    outcome = await run_load(HttpTarget("http://127.0.0.1:9"), requests(), plan)
    assert set(outcome.failures) == {"ConnectionRefusedError"}


SAMPLE = Sample(["a"], 0.1, 1.0)


def test_a_slow_generator_is_detected() -> None:
    idle = Outcome([SAMPLE], lags_s=[0.0] * 100, duration_s=1, cpu_share=0.5)
    assert not idle.generator_is_the_limit()
    assert Outcome([SAMPLE], lags_s=[0.02] * 100, duration_s=1).generator_is_the_limit()
    assert Outcome([SAMPLE], duration_s=1, cpu_share=0.95).generator_is_the_limit()
