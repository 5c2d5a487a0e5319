"""Which groups a replica admits, in which lane, and how large groups take turns."""

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve_app.config import EmbedderSettings
from serve_app.errors import InvalidRequest, Overloaded, Unavailable
from serve_app.metrics import QUEUED_TOKENS
from serve_app.scheduler.pending import PendingGroup
from serve_app.types import Lane, TextGroup, Vectors
from tests.fakes import FakeEngine, fake_vector
from tests.scheduler.engine_scheduler import EngineScheduler
from tests.scheduler.fake_clock import FakeClock

LIMIT = 640  # so a group of more than 80 tokens is large


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.hold()
    return engine


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def scheduler(engine: FakeEngine, clock: FakeClock) -> AsyncIterator[EngineScheduler]:
    """A scheduler whose engine is held, with batches of up to 64 tokens."""
    settings = EmbedderSettings(
        max_queued_tokens=LIMIT, max_request_tokens=10 * LIMIT, max_batch_tokens=64
    )
    with ThreadPoolExecutor(1) as engine_thread, ThreadPoolExecutor(1) as tokenizer_thread:
        scheduler = EngineScheduler(
            engine,
            settings,
            engine_threads=engine_thread,
            tokenizer_thread=tokenizer_thread,
            clock=clock,
        )
        scheduler.start()
        yield scheduler
        engine.release()
        await scheduler.stop()


async def submit(
    scheduler: EngineScheduler, texts: list[str], lane: Lane = "bulk", deadline_s: float = math.inf
) -> PendingGroup:
    group = scheduler.group(TextGroup(tuple(texts), lane=lane, deadline_s=deadline_s))
    await scheduler.submit([group])
    return group


def large_texts(letter: str, tokens: int = 2 * LIMIT) -> list[str]:
    """Returns texts of 16 tokens each that begin with a letter."""
    return [letter + f"{i:015}" for i in range(tokens // 16)]


async def fill(scheduler: EngineScheduler, lane: Lane) -> list[PendingGroup]:
    """Fills a lane with groups that aren't large."""
    return [await submit(scheduler, ["f" * 16] * 4, lane) for _ in range(LIMIT // 64)]


async def computed(group: PendingGroup) -> None:
    """Waits until a group has the vectors of its texts."""
    async with asyncio.timeout(30):
        result = await group.future
    assert isinstance(result, Vectors)
    expected = np.stack([fake_vector(str(text)) for text in group.text_group.texts])
    assert np.array_equal(result.values, expected)


async def rejected(group: PendingGroup) -> Overloaded:
    """Returns the error of a group that was rejected."""
    error = await asyncio.wait_for(group.future, 30)
    assert isinstance(error, Overloaded)
    return error


async def test_a_full_lane_does_not_reject_texts_of_another_lane(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    lanes: list[Lane] = ["interactive", "bulk"]
    for lane in lanes:
        await fill(scheduler, lane)
        await rejected(await submit(scheduler, ["x"], lane))
    assert scheduler.gauges()[QUEUED_TOKENS] == {
        ("interactive", "embed", "model"): LIMIT,
        ("bulk", "embed", "model"): LIMIT,
    }
    assert scheduler.load.queued_tokens == 2 * LIMIT


async def test_a_large_bulk_group_does_not_reject_queries(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    large = await submit(scheduler, large_texts("l"))
    query = await submit(scheduler, ["query"], "interactive")
    engine.release()
    await computed(query)
    assert not large.future.done()
    await computed(large)


async def test_a_large_group_gets_in_next_to_a_full_lane(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    small = await fill(scheduler, "bulk")
    large = await submit(scheduler, large_texts("l"))
    assert scheduler.load.queued_tokens == 3 * LIMIT  # what the autoscaler sees
    engine.release()
    for group in [*small, large]:
        await computed(group)
    assert scheduler.load.queued_tokens == 0


async def test_a_large_group_of_long_texts_gets_in_next_to_a_full_lane(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    await fill(scheduler, "bulk")
    large = await submit(scheduler, ["long " * 4000] * 100)  # several runs of the tokenizer
    await asyncio.sleep(0)
    assert not large.future.done()
    assert scheduler.load.queued_tokens == LIMIT + 100 * 16


async def test_a_small_group_waits_for_one_part_of_a_large_one(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    large = await submit(scheduler, large_texts("l"))
    small = await submit(scheduler, ["small"])
    engine.release()
    await computed(small)
    await computed(large)
    before = next(i for i, batch in enumerate(engine.batches) if "small" in batch)
    assert sum(len(batch) for batch in engine.batches[:before]) <= 2 * LIMIT / 8 / 16


async def test_large_groups_are_computed_one_after_another(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    first = await submit(scheduler, large_texts("a", LIMIT))
    second = await submit(scheduler, large_texts("b", 8 * LIMIT))
    third = await submit(scheduler, large_texts("c"))
    error = await rejected(third)
    assert "send at most 80 tokens in one request" in error.message
    engine.release()
    await computed(first)
    assert not second.future.done()
    await computed(second)
    initials = [batch[0][0] for batch in engine.batches]
    assert initials == sorted(initials)


async def test_a_cancelled_large_group_makes_room_for_the_next(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    first = await submit(scheduler, large_texts("a", LIMIT))
    second = await submit(scheduler, large_texts("b"))
    await rejected(await submit(scheduler, large_texts("c")))
    second.future.cancel()
    await asyncio.sleep(0)
    third = await submit(scheduler, large_texts("c"))
    first.future.cancel()
    engine.release()
    await computed(third)
    assert {batch[0][0] for batch in engine.batches[1:]} == {"c"}
    assert scheduler.load.queued_tokens == 0


async def test_a_large_group_that_would_miss_its_deadline_is_rejected_at_once(
    engine: FakeEngine, scheduler: EngineScheduler, clock: FakeClock
) -> None:
    run = scheduler.load.start_batch("model")
    clock.now_s += 1
    scheduler.load.end_batch(run, 64)  # tokens per second
    first = await submit(scheduler, large_texts("a", LIMIT))
    error = await rejected(
        await submit(scheduler, large_texts("b", LIMIT), deadline_s=clock.now_s + 19)
    )
    assert error.retry_after_s == 10
    second = await submit(scheduler, large_texts("b", LIMIT), deadline_s=clock.now_s + 21)
    engine.release()
    await computed(first)
    await computed(second)


async def test_retry_after_follows_the_speed_of_the_lane(
    engine: FakeEngine, scheduler: EngineScheduler, clock: FakeClock
) -> None:
    bulk = await submit(scheduler, ["b" * 16] * 5)
    interactive = await submit(scheduler, ["i" * 16] * 5, "interactive")
    while not engine.batches:
        await asyncio.sleep(0.001)
    clock.now_s += 4
    engine.release()
    await computed(bulk)
    await computed(interactive)
    engine.hold()
    for lane in ("interactive", "bulk"):
        await fill(scheduler, lane)
    error = await rejected(await submit(scheduler, ["x"], "interactive"))
    assert error.retry_after_s == LIMIT / 20  # 80 tokens in 4 s
    assert "in the interactive lane" in error.message


async def test_a_group_over_the_limit_of_a_request_is_not_worth_a_retry(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    group = await submit(scheduler, large_texts("l", 10 * LIMIT + 16))
    error = await group.future
    assert isinstance(error, InvalidRequest)
    assert "split the list into several requests" in error.message


async def test_the_rest_of_a_rejected_group_is_not_tokenized(
    engine: FakeEngine, scheduler: EngineScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for letter in "ab":
        await submit(scheduler, large_texts(letter))
    tokenized = 0
    encode = engine.tokenizer.encode

    def count(texts: list[str]) -> list[object]:
        nonlocal tokenized
        tokenized += len(texts)
        return list(encode(texts))

    monkeypatch.setattr(engine.tokenizer, "encode", count)
    await rejected(await submit(scheduler, ["long " * 1000] * 1000))
    assert 0 < tokenized < 100


async def test_stopping_fails_large_groups_that_wait_for_their_turn(
    engine: FakeEngine, scheduler: EngineScheduler
) -> None:
    groups = [await submit(scheduler, large_texts(letter, LIMIT)) for letter in "ab"]
    await scheduler.stop()
    for group in groups:
        assert isinstance(await group.future, Unavailable)
    await asyncio.sleep(0)
    assert scheduler.load.queued_tokens == 0
