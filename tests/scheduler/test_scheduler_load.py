"""What a scheduler reports of its queues and engines."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from serve_app.config import EmbedderSettings
from serve_app.metrics import BUSY_SHARE, CAPACITY, OLDEST_INTERACTIVE
from serve_app.scheduler.pending import PendingGroup
from serve_app.types import Lane, TextGroup, Vectors
from tests.fakes import FakeEngine
from tests.scheduler.engine_scheduler import EngineScheduler
from tests.scheduler.fake_clock import FakeClock


class TwoStreams(FakeEngine):
    streams = 2


@asynccontextmanager
async def run_scheduler(engine: FakeEngine, clock: FakeClock) -> AsyncIterator[EngineScheduler]:
    settings = EmbedderSettings(max_batch_texts=1)
    with ThreadPoolExecutor(2) as engine_threads, ThreadPoolExecutor(1) as tokenizer_thread:
        scheduler = EngineScheduler(
            engine,
            settings,
            engine_threads=engine_threads,
            tokenizer_thread=tokenizer_thread,
            clock=clock,
        )
        scheduler.start()
        yield scheduler
        engine.release()
        await scheduler.stop()


async def submit(scheduler: EngineScheduler, text: str, lane: Lane = "interactive") -> PendingGroup:
    group = scheduler.group(TextGroup((text,), lane=lane))
    await scheduler.submit([group])
    return group


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_oldest_interactive_text_is_one_that_somebody_waits_for() -> None:
    engine, clock = FakeEngine(), FakeClock()
    engine.hold()
    async with run_scheduler(engine, clock) as scheduler:

        def oldest_s() -> float:
            age_s = scheduler.sample_load().oldest_interactive_s
            assert scheduler.gauges()[OLDEST_INTERACTIVE] == age_s
            return age_s

        assert oldest_s() == 0
        running = await submit(scheduler, "running")
        await wait_until(lambda: engine.batches)
        waiting = [running]
        arrivals: list[tuple[float, Lane]]
        arrivals = [(1.0, "bulk"), (2.0, "interactive"), (5.0, "interactive")]
        for clock.now_s, lane in arrivals:
            waiting.append(await submit(scheduler, f"since {clock.now_s}", lane))
        clock.now_s = 10
        assert oldest_s() == 8  # neither the one that runs nor the bulk text
        waiting[2].future.cancel()
        assert oldest_s() == 5
        engine.release()
        for group in (waiting[0], waiting[1], waiting[3]):
            assert isinstance(await group.future, Vectors)
        assert oldest_s() == 0
    assert len(engine.batches) == 3


async def test_texts_that_another_replica_had_before_are_no_arrivals() -> None:
    engine, clock = FakeEngine(), FakeClock()
    engine.hold()
    async with run_scheduler(engine, clock) as scheduler:
        groups = [scheduler.group(TextGroup(("a text",), is_resent=i > 0)) for i in range(3)]
        for group in groups:
            await scheduler.submit([group])
        clock.now_s = 1
        load = scheduler.sample_load()
        assert load.queued_interactive_tokens == 3 * load.offered_interactive_tokens_per_s > 0
        engine.release()
        for group in groups:
            await group.future


async def run_batches(
    scheduler: EngineScheduler, engine: FakeEngine, clock: FakeClock, count: int, seconds: float
) -> None:
    """Runs batches of 16 tokens at a time."""
    started = len(engine.batches)
    engine.hold()
    groups = [await submit(scheduler, "a text of 16 ...") for _ in range(count)]
    await wait_until(lambda: len(engine.batches) == started + count)
    clock.now_s += seconds
    engine.release()
    for group in groups:
        await group.future
    await asyncio.sleep(0)


async def test_the_capacity_knows_how_much_streams_slow_each_other() -> None:
    engine, clock = TwoStreams(), FakeClock()
    async with run_scheduler(engine, clock) as scheduler:

        def capacity() -> float:
            return scheduler.sample_load().capacity_tokens_per_s

        assert capacity() == 0
        for _ in range(20):
            await run_batches(scheduler, engine, clock, 1, 1.0)
        assert capacity() == pytest.approx(2 * 16)  # two streams that don't slow each other
        for _ in range(20):
            await run_batches(scheduler, engine, clock, 2, 2.0)
        assert capacity() == pytest.approx(16)  # in fact they share one core
        for _ in range(20):
            await run_batches(scheduler, engine, clock, 1, 1.0)
        assert capacity() == pytest.approx(16)
        by_model = scheduler.gauges()[CAPACITY]
        assert isinstance(by_model, Mapping)
        assert by_model["model",] == pytest.approx(16)


async def test_it_is_busy_while_an_engine_runs() -> None:
    engine, clock = TwoStreams(), FakeClock()
    async with run_scheduler(engine, clock) as scheduler:
        await run_batches(scheduler, engine, clock, 2, 3.0)
        clock.now_s += 1
        load = scheduler.sample_load()
        assert (load.busy_share, load.served_tokens_per_s) == (0.75, 2 * 16 / 4)
        assert scheduler.gauges()[BUSY_SHARE] == 0.75
        clock.now_s += 1
        assert scheduler.sample_load().busy_share == 0
