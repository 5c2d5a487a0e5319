"""What the scheduler measures of batches, texts and waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.config import EmbedderSettings
from serve_app.errors import DeadlineExceeded
from serve_app.metrics import (
    BATCH_DURATION,
    BATCH_SIZE,
    PADDED_TOKENS,
    QUEUE_DURATION,
    TEXT_LENGTH,
    Metric,
)
from serve_app.types import TextGroup
from tests.fakes import FakeEngine
from tests.scheduler.engine_scheduler import EngineScheduler
from tests.scheduler.fake_clock import FakeClock

MODEL = "model"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def scheduler(engine: FakeEngine, clock: FakeClock) -> AsyncIterator[EngineScheduler]:
    with ThreadPoolExecutor(1) as engine_thread, ThreadPoolExecutor(1) as tokenizer_thread:
        scheduler = EngineScheduler(
            engine,
            EmbedderSettings(max_batch_texts=2),
            engine_threads=engine_thread,
            tokenizer_thread=tokenizer_thread,
            clock=clock,
        )
        scheduler.start()
        yield scheduler
        engine.release()
        await scheduler.stop()


def observed(scheduler: EngineScheduler, metric: Metric, *tags: str) -> tuple[int, float]:
    """Returns the number and the sum of a histogram's values."""
    histogram = scheduler.meter.histograms().get((metric, tags))
    return (0, 0.0) if histogram is None else (histogram.count, histogram.sum)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def start_batch(scheduler: EngineScheduler, engine: FakeEngine) -> Awaitable[object]:
    """Returns the future of a text that the held engine computes."""
    engine.hold()
    group = scheduler.group(TextGroup(("first",)))
    await scheduler.submit([group])
    await until(lambda: engine.batches)
    return group.future


async def test_batches_and_texts_are_observed_once(
    scheduler: EngineScheduler, engine: FakeEngine
) -> None:
    group = scheduler.group(TextGroup(("a", "bb", "cccc"), lane="bulk"))
    await scheduler.submit([group])
    await group.future
    assert sorted(map(len, engine.batches)) == [1, 2]
    assert observed(scheduler, BATCH_DURATION, MODEL)[0] == 2
    assert observed(scheduler, BATCH_SIZE, MODEL) == (2, 3)
    assert observed(scheduler, TEXT_LENGTH, MODEL) == (3, 7)
    assert scheduler.meter.value(PADDED_TOKENS, MODEL) >= 7


async def test_a_group_of_several_batches_waits_until_the_first(
    scheduler: EngineScheduler, engine: FakeEngine, clock: FakeClock
) -> None:
    first = await start_batch(scheduler, engine)
    group = scheduler.group(TextGroup(("a", "b", "c", "d"), lane="bulk"))
    await scheduler.submit([group])
    clock.now_s += 3
    engine.release()
    await asyncio.gather(first, group.future)
    assert observed(scheduler, QUEUE_DURATION, "interactive", MODEL) == (1, 0)
    assert observed(scheduler, QUEUE_DURATION, "bulk", MODEL) == (1, 3)


async def test_a_group_whose_time_is_up_has_waited_until_then(
    scheduler: EngineScheduler, engine: FakeEngine, clock: FakeClock
) -> None:
    first = await start_batch(scheduler, engine)
    expired = scheduler.group(TextGroup(("late",), lane="bulk", deadline_s=2))
    left = scheduler.group(TextGroup(("left",), lane="bulk"))
    await scheduler.submit([expired, left])
    left.future.cancel()  # its client has left
    clock.now_s += 5
    engine.release()
    await first
    assert isinstance(await expired.future, DeadlineExceeded)
    await until(lambda: not scheduler.load.queued_tokens)
    assert observed(scheduler, QUEUE_DURATION, "bulk", MODEL) == (1, 5)


async def test_failed_batches_are_not_observed(
    scheduler: EngineScheduler, engine: FakeEngine
) -> None:
    group = scheduler.group(TextGroup(("boom",)))
    await scheduler.submit([group])
    await group.future
    assert observed(scheduler, QUEUE_DURATION, "interactive", MODEL)[0] == 1
    assert observed(scheduler, BATCH_DURATION, MODEL) == (0, 0)
