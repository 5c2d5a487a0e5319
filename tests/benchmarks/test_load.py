"""The generator against servers whose behaviour is known."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import repeat

import pytest

from benchmarks.load import Answer, Outcome, Plan, Pulse, run
from benchmarks.target import HttpTarget
from benchmarks.workloads import WORKLOADS

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
Handler = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def server(answer: Handler) -> AsyncIterator[HttpTarget]:
    """A server that reads one request at a time and answers what it is told to."""

    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                writer.write(await answer(await reader.readexactly(length)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    yield HttpTarget(f"http://{host}:{port}")
    listening.close()
    for handler in filter(None, handlers):
        handler.cancel()
    await asyncio.wait(filter(None, handlers))
    await asyncio.sleep(0)


def texts() -> Iterator[list[str]]:
    return repeat(["a", "b"])


async def at_once(body: bytes) -> bytes:
    return OK


async def test_counts_answers_texts_and_rates() -> None:
    async with server(at_once) as target:
        outcome = await run(target, texts(), Plan(0.3, warmup_s=0.1, connections=2))
    figures = outcome.summary()
    assert figures["answered"] == len(outcome.latencies) > 10
    assert figures["texts_per_s"] == pytest.approx(2 * outcome.requests_per_s, abs=0.01)
    assert figures["tokens_per_s"] == pytest.approx(6 * outcome.requests_per_s, abs=1)  # CLS, SEP
    assert figures["failed"] == {}


async def test_an_open_loop_keeps_its_rate() -> None:
    async with server(at_once) as target:
        outcome = await run(target, texts(), Plan(2.0, warmup_s=0.2, rate=200))
    assert len(outcome.lags) == len(outcome.latencies)
    assert len(outcome.latencies) == pytest.approx(400, abs=80)  # Poisson: 20 is one sigma


async def test_a_request_counts_by_the_part_that_lies_in_the_time() -> None:
    """Two clients, half a second for each answer: four a second, however short the time."""

    async def slowly(body: bytes) -> bytes:
        await asyncio.sleep(0.5)
        return OK

    async with server(slowly) as target:
        outcome = await run(target, texts(), Plan(0.7, warmup_s=0.3, connections=2))
    assert outcome.requests_per_s == pytest.approx(4, rel=0.1)
    assert sum(answer.share for answer in outcome.answers) < len(outcome.answers)


async def test_what_is_answered_late_took_that_long() -> None:
    """Forty a second for a second, on a server that does twenty: two seconds' work."""
    one_at_a_time = asyncio.Lock()

    async def slowly(body: bytes) -> bytes:
        async with one_at_a_time:
            await asyncio.sleep(0.05)
        return OK

    async with server(slowly) as target:
        outcome = await run(target, texts(), Plan(1.0, warmup_s=0, rate=40, connections=64))
    assert outcome.requests_per_s == pytest.approx(20, rel=0.15)


async def test_a_rate_that_climbs_sends_three_quarters_in_its_second_half() -> None:
    begin = time.perf_counter()
    arrivals: list[float] = []

    async def notes(body: bytes) -> bytes:
        arrivals.append(time.perf_counter() - begin)
        return OK

    async with server(notes) as target:
        ramp = Plan(2.0, warmup_s=0, rate=200, shape=WORKLOADS["ramp"].shape)
        await run(target, texts(), ramp)
    assert len(arrivals) == pytest.approx(400, abs=80)
    late = sum(1 for arrival in arrivals if arrival > 1.0)
    assert late / len(arrivals) == pytest.approx(0.75, abs=0.08)


async def test_it_tells_how_it_goes() -> None:
    pulses: list[Pulse] = []
    async with server(at_once) as target:
        await run(target, texts(), Plan(2.1, warmup_s=0, rate=50), pulses.append)
    assert [round(pulse.gone_s) for pulse in pulses] == [1, 2]
    assert pulses[1].requests_per_s == pytest.approx(50, abs=25)
    assert 0 < pulses[1].p50_ms <= pulses[1].p99_ms
    assert pulses[1].failed == 0


async def test_a_stall_is_seen_by_every_request_that_was_due_in_it() -> None:
    """At a steady rate over 4 s, a stall of 1 s meets a quarter of all requests.

    Those wait from 0 to 1 s, evenly; so a quarter of the way down from the slowest is 0 s, and
    the slowest of a hundred wait for (25 - 1) / 25 of the stall: p99 is 0.96 s. A closed loop
    would have had one slow request on each connection and a p99 near zero.
    """
    stall_at = time.perf_counter() + 1.5
    stalled_until = stall_at + 1.0

    async def stalls(body: bytes) -> bytes:
        now = time.perf_counter()
        if stall_at <= now < stalled_until:
            await asyncio.sleep(stalled_until - now)
        return OK

    async with server(stalls) as target:
        open_loop = await run(target, texts(), Plan(4.0, warmup_s=0.2, rate=250, connections=8))
    p99_s = float(open_loop.summary()["p99_ms"]) / 1000  # type: ignore[arg-type]
    assert p99_s == pytest.approx(0.96, abs=0.1)
    stalled = sum(1 for latency in open_loop.latencies if latency > 0.05)
    assert stalled / len(open_loop.latencies) == pytest.approx(0.95 / 4, abs=0.06)


async def test_refusals_and_broken_connections_are_counted_not_timed() -> None:
    replies = iter([b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\n\r\n", b"nonsense\r\n\r\n"])

    async def refuses(body: bytes) -> bytes:
        return next(replies, OK)

    async with server(refuses) as target:
        outcome = await run(target, texts(), Plan(0.3, warmup_s=0, connections=1))
    assert outcome.failures == {"429": 1, "ConnectionError": 1}
    assert outcome.latencies


async def test_a_server_that_never_answers_times_out() -> None:
    async def never(body: bytes) -> bytes:
        await asyncio.sleep(60)
        return OK

    async with server(never) as target:
        plan = Plan(0.2, warmup_s=0, rate=20, timeout_s=0.1)
        outcome = await run(target, texts(), plan)
    assert set(outcome.failures) == {"timeout"}
    assert outcome.latencies == []


async def test_nobody_listening_is_a_failure_not_a_crash() -> None:
    plan = Plan(0.1, warmup_s=0, connections=1)
    outcome = await run(HttpTarget("http://127.0.0.1:9"), texts(), plan)
    assert set(outcome.failures) == {"ConnectionRefusedError"}


ONE = Answer(["a"], 0.1, 1.0)


def test_a_generator_that_is_itself_too_slow_says_so() -> None:
    calm = Outcome([ONE], lags=[0.0] * 100, seconds=1, cpu_share=0.5)
    assert not calm.generator_is_the_limit()
    assert Outcome([ONE], lags=[0.02] * 100, seconds=1).generator_is_the_limit()
    assert Outcome([ONE], seconds=1, cpu_share=0.95).generator_is_the_limit()
