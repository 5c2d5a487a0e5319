import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config import EmbedderSettings
from serve_app.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.inputs import Input
from serve_app.metrics import BUDGET_TOKENS
from serve_app.scheduler.pending import PendingGroup
from serve_app.scheduler.scheduler import Scheduler
from serve_app.tasks import Task
from serve_app.types import RaggedVectors, TextGroup, Vectors
from tests.fakes import SPEC, FakeEngine, fake_vector
from tests.scheduler.engine_scheduler import EngineScheduler
from tests.scheduler.fake_clock import FakeClock

RunScheduler = Callable[..., AbstractAsyncContextManager[EngineScheduler]]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def run_scheduler(engine: FakeEngine) -> RunScheduler:
    @asynccontextmanager
    async def run(
        clock: Callable[[], float] = time.monotonic, **changes: Any
    ) -> AsyncIterator[EngineScheduler]:
        with ThreadPoolExecutor(1) as engine_thread, ThreadPoolExecutor(1) as tokenizer_thread:
            scheduler = EngineScheduler(
                engine,
                EmbedderSettings(**changes),
                engine_threads=engine_thread,
                tokenizer_thread=tokenizer_thread,
                clock=clock,
            )
            scheduler.start()
            yield scheduler
            engine.release()
            await scheduler.stop()

    return run


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def submit(scheduler: EngineScheduler, *groups: list[str]) -> list[Any]:
    """Submits groups of texts together and returns their futures."""
    pending = [scheduler.group(TextGroup(tuple(texts))) for texts in groups]
    await scheduler.submit(pending)
    return [group.future for group in pending]


async def embed(scheduler: EngineScheduler, *texts: str) -> Vectors:
    (future,) = await submit(scheduler, list(texts))
    result = await future
    assert isinstance(result, Vectors)
    return result


async def test_an_idle_engine_computes_a_text(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        vectors = await embed(scheduler, "hello")
    assert np.array_equal(vectors.values, fake_vector("hello")[None])
    assert (vectors.token_counts.tolist(), vectors.truncated.tolist()) == ([5], [False])


async def test_texts_that_arrive_while_the_engine_is_busy_share_a_batch(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        engine.hold()
        first = asyncio.create_task(embed(scheduler, "a"))
        await wait_until(lambda: engine.batches)
        later = [asyncio.create_task(embed(scheduler, text)) for text in "bcdef"]
        await wait_until(lambda: scheduler.load.queued_tokens == 6)
        engine.release()
        await asyncio.gather(first, *later)
    assert engine.batches == [["a"], list("bcdef")]


async def test_texts_of_similar_length_share_a_batch(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    short, long = [c * 2 for c in "abcdefgh"], [c * 16 for c in "abcd"]
    mixed = [text for pair in zip(short[:4], long, strict=True) for text in pair] + short[4:]
    async with run_scheduler(max_batch_tokens=64) as scheduler:
        vectors = await embed(scheduler, *mixed)
    assert np.array_equal(vectors.values, np.stack([fake_vector(text) for text in mixed]))
    padding = [sum(max(map(len, b)) - len(text) for text in b) for b in engine.batches]
    assert sum(padding) == 0
    assert engine.batches == [short, long]


@pytest.mark.parametrize("tokens_per_s", [None, 100])
async def test_a_group_that_exceeds_the_queue_is_rejected_as_a_whole(
    engine: FakeEngine, run_scheduler: RunScheduler, tokens_per_s: int | None
) -> None:
    clock = FakeClock()
    async with run_scheduler(clock, max_queued_tokens=640) as scheduler:
        if tokens_per_s:
            run = scheduler.load.start_batch("model")
            clock.now_s += 1
            scheduler.load.end_batch(run, tokens_per_s)
        engine.hold()
        admitted = (await submit(scheduler, *[["x" * 10] * 6] * 10))[0]
        (rejected,) = await submit(scheduler, ["y", *["z" * 10] * 4])
        error = await rejected
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == (6 if tokens_per_s else 1)  # 600 tokens at 100 tokens/s
        (fits,) = await submit(scheduler, ["y"])
        engine.release()
        assert isinstance(await admitted, Vectors)
        assert isinstance(await fits, Vectors)
        assert not any("z" in text for batch in engine.batches for text in batch)


async def test_a_group_over_the_request_limit_is_rejected(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_request_tokens=64) as scheduler:
        rejected, fits = await submit(scheduler, ["x" * 16] * 5, ["y" * 16] * 4)
        error = await rejected
        assert isinstance(error, InvalidRequest)
        assert "80 tokens; at most 64" in str(error)
        assert isinstance(await fits, Vectors)
    assert not any("x" * 16 in batch for batch in engine.batches)


async def test_a_group_larger_than_the_queue_is_admitted_while_it_is_empty(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_queued_tokens=64) as scheduler:
        vectors = await embed(scheduler, *["x" * 16] * 100)
    assert len(vectors.values) == 100


async def test_a_cancelled_group_leaves_the_queue_and_is_not_computed(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        engine.hold()
        (first,) = await submit(scheduler, ["first"])
        await wait_until(lambda: engine.batches)
        (cancelled,) = await submit(scheduler, ["gone"] * 50)
        (stays,) = await submit(scheduler, ["stays"])
        assert scheduler.load.queued_tokens == 5 + 50 * 4 + 5
        cancelled.cancel()
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 5 + 5  # even while the engine is busy
        engine.release()
        await asyncio.gather(first, stays)
        assert scheduler.load.queued_tokens == 0
    assert engine.batches == [["first"], ["stays"]]


async def test_a_group_cancelled_during_tokenization_is_not_computed(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        cancelled = scheduler.group(TextGroup(("gone",)))
        submitting = asyncio.create_task(scheduler.submit([cancelled]))
        await asyncio.sleep(0)
        cancelled.future.cancel()
        await submitting
        await embed(scheduler, "stays")
    assert engine.batches == [["stays"]]


async def test_only_the_failing_group_of_500_fails(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    groups = [[f"text {i}"] for i in range(500)]
    groups[123] = ["boom"]
    async with run_scheduler() as scheduler:
        results = await asyncio.gather(*await submit(scheduler, *groups))
        assert (await embed(scheduler, "fine")).values.shape == (1, 8)
        assert scheduler.load.queued_tokens == 0
    failed = [i for i, result in enumerate(results) if isinstance(result, InferenceError)]
    assert failed == [123]
    assert "the text 'boom'" in str(results[123])
    for group, result in zip(groups, results, strict=True):
        assert group == ["boom"] or np.array_equal(result.values[0], fake_vector(group[0]))


async def test_an_out_of_memory_batch_is_bisected_and_bounds_later_batches(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    engine.memory_tokens = 40
    async with run_scheduler() as scheduler:
        for _ in range(2):
            vectors = await embed(scheduler, *["x" * 8] * 32)
            assert np.array_equal(vectors.values, np.stack([fake_vector("x" * 8)] * 32))
    too_large = [len(batch) for batch in engine.batches if len(batch) * 8 > 40]
    assert too_large == [32, 16, 8, 8, 16, 8, 8]  # only the first batch and its halves


async def test_a_text_that_exceeds_memory_fails_only_its_group(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    engine.memory_tokens = 4
    async with run_scheduler() as scheduler:
        large, small = await submit(scheduler, ["x" * 8], ["y"])
        assert "MemoryError" in str(await large)
        assert isinstance(await small, Vectors)


async def test_an_engine_with_two_streams_runs_two_batches_concurrently(
    run_scheduler: RunScheduler,
) -> None:
    engine = FakeEngine()
    engine.streams = 2
    engine.hold()
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(1) as one:
        scheduler = EngineScheduler(
            engine, EmbedderSettings(), engine_threads=two, tokenizer_thread=one
        )
        scheduler.start()
        futures = await submit(scheduler, ["a"])
        await wait_until(lambda: len(engine.batches) == 1)
        futures += await submit(scheduler, ["b"])
        await wait_until(lambda: len(engine.batches) == 2)
        engine.release()
        assert all(isinstance(result, Vectors) for result in await asyncio.gather(*futures))
        await scheduler.stop()


async def test_interactive_texts_wait_only_for_the_running_batch(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_batch_texts=4) as scheduler:
        engine.hold()
        bulk = scheduler.group(TextGroup(("bulk",) * 12, lane="bulk"))
        await scheduler.submit([bulk])
        await wait_until(lambda: engine.batches)
        (query,) = await submit(scheduler, ["query"])
        engine.release()
        await asyncio.gather(query, bulk.future)
    assert [batch[0] for batch in engine.batches] == ["bulk", "query", "bulk", "bulk"]


async def test_a_group_past_its_deadline_is_not_computed(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        engine.hold()
        (first,) = await submit(scheduler, ["first"])
        await wait_until(lambda: engine.batches)
        expired = scheduler.group(TextGroup(("late",), deadline_s=time.monotonic() + 0.01))
        await scheduler.submit([expired])
        await asyncio.sleep(0.02)
        engine.release()
        await first
        assert isinstance(await expired.future, DeadlineExceeded)
        await wait_until(lambda: scheduler.load.queued_tokens == 0)
    assert engine.batches == [["first"]]


async def test_batches_are_shorter_for_a_second_after_an_interactive_text(
    run_scheduler: RunScheduler,
) -> None:
    clock = FakeClock()
    async with run_scheduler(clock=clock) as scheduler:
        bulk = scheduler.group(
            TextGroup(tuple(16 * chr(97 + i % 26) for i in range(64)), lane="bulk")
        )
        await scheduler.submit([bulk])
        await bulk.future
        longer = scheduler.gauges()[BUDGET_TOKENS]
        await embed(scheduler, "query")
        shorter = scheduler.gauges()[BUDGET_TOKENS]
        clock.now_s += 1.1
        assert scheduler.gauges()[BUDGET_TOKENS] == longer != shorter


async def test_timings_separate_queue_and_inference_time(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        engine.hold()
        start_s = time.monotonic()
        first = asyncio.create_task(embed(scheduler, "first"))
        await wait_until(lambda: engine.batches)
        second = asyncio.create_task(embed(scheduler, "second"))
        await wait_until(lambda: scheduler.load.queued_tokens == 11)
        await asyncio.sleep(0.05)
        engine.release()
        timings = [(await task).timings for task in (first, second)]
        total_s = time.monotonic() - start_s
    assert timings[0].infer_s >= 0.05 > timings[0].queue_s
    assert timings[1].queue_s >= 0.05 > timings[1].infer_s
    assert all(sum(timing) <= total_s for timing in timings)


async def test_a_non_finite_vector_is_an_inference_error(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        bad, good = await submit(scheduler, ["nan"], ["fine"])
        error = await bad
        assert isinstance(error, InferenceError)
        assert "non-finite vector" in str(error)
        assert isinstance(await good, Vectors)


async def test_token_ids_are_embedded_without_the_prompt(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        group = scheduler.group(TextGroup(("ab", (97, 98)), prompt="query: "))
        await scheduler.submit([group])
        vectors = await group.future
    assert isinstance(vectors, Vectors)
    assert np.array_equal(vectors.values, [fake_vector("query: ab"), fake_vector("ab")])
    assert vectors.token_counts.tolist() == [9, 2]


@pytest.mark.parametrize("count", [1, 300], ids=["inline", "in the tokenizer thread"])
async def test_invalid_token_ids_fail_only_their_group(
    engine: FakeEngine, run_scheduler: RunScheduler, count: int
) -> None:
    groups: list[tuple[Input, ...]] = [("a text", (97,)), ("invalid", (-1,)), ("another",) * count]
    async with run_scheduler(max_batch_texts=500) as scheduler:
        pending = [scheduler.group(TextGroup(texts)) for texts in groups]
        await scheduler.submit(pending)
        first, invalid, last = await asyncio.gather(*(group.future for group in pending))
        assert isinstance(first, Vectors)
        assert isinstance(last, Vectors)
        assert isinstance(invalid, InvalidRequest)
        await wait_until(lambda: scheduler.load.queued_tokens == 0)
    assert np.array_equal(first.values, [fake_vector("a text"), fake_vector("a")])
    assert np.array_equal(last.values, np.stack([fake_vector("another")] * count))
    assert not any("invalid" in batch for batch in engine.batches)


async def test_a_failing_tokenizer_is_an_inference_error(
    engine: FakeEngine, run_scheduler: RunScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_scheduler() as scheduler:
        monkeypatch.setattr(engine.tokenizer, "encode", lambda texts: 1 / 0)
        (future,) = await submit(scheduler, ["a"])
        assert isinstance(await future, InferenceError)


async def test_a_stalled_engine_fails_the_health_check(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(stall_timeout_s=0.02) as scheduler:
        scheduler.check_health()
        engine.hold()
        (future,) = await submit(scheduler, ["a"])
        await wait_until(lambda: engine.batches)
        await asyncio.sleep(0.03)
        with pytest.raises(InferenceError, match="has been running"):
            scheduler.check_health()
        engine.release()
        await future
        scheduler.check_health()


async def test_stopping_fails_running_queued_and_later_groups(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        engine.hold()
        (running,) = await submit(scheduler, ["running"])
        await wait_until(lambda: engine.batches)
        (waiting,) = await submit(scheduler, ["waiting"])
        await scheduler.stop()
        assert isinstance(await running, Unavailable)
        assert isinstance(await waiting, Unavailable)
        (late,) = await submit(scheduler, ["late"])
        assert isinstance(await late, Unavailable)
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 0


async def test_new_settings_apply_to_the_next_batch(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        scheduler.settings = EmbedderSettings(max_batch_texts=2)
        await embed(scheduler, *"abcd")
    assert [len(batch) for batch in engine.batches] == [2, 2]


async def submit_token_vectors(scheduler: EngineScheduler, *texts: Input) -> PendingGroup:
    group = scheduler.group(TextGroup(texts, task="embed_tokens", lane="bulk"))
    await scheduler.submit([group])
    return group


async def test_each_token_gets_a_vector(engine: FakeEngine, run_scheduler: RunScheduler) -> None:
    async with run_scheduler() as scheduler:
        result = await (await submit_token_vectors(scheduler, "ab", "c" * 30, (100,))).future
    assert isinstance(result, RaggedVectors)
    for values, text in zip(result.values, ["ab", "c" * 16, "d"], strict=True):
        assert np.array_equal(values, np.stack([fake_vector(letter) for letter in text]))
    assert result.truncated.tolist() == [False, True, False]


async def test_interactive_texts_wait_for_at_most_one_batch_of_token_vectors(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_batch_tokens=64) as scheduler:
        engine.hold()
        tokens = await submit_token_vectors(scheduler, *["t" * 16] * 12)
        await wait_until(lambda: engine.batches)
        (query,) = await submit(scheduler, ["query"])
        engine.release()
        assert isinstance(await query, Vectors)
        assert isinstance(await tokens.future, RaggedVectors)
    assert [batch[0] for batch in engine.batches] == ["t" * 16, "query", "t" * 16, "t" * 16]
    assert {len(batch) for batch in engine.batches} == {1, 4}


async def test_a_cancelled_group_of_token_vectors_leaves_the_queue(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_batch_tokens=64) as scheduler:
        engine.hold()
        cancelled = await submit_token_vectors(scheduler, *["t" * 16] * 12)
        await wait_until(lambda: engine.batches)
        cancelled.future.cancel()
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 64  # the running batch
        engine.release()
        await embed(scheduler, "stays")
        await wait_until(lambda: scheduler.load.queued_tokens == 0)
    assert len(engine.batches) == 2


async def test_token_vectors_are_rejected_while_the_queue_is_full(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler(max_queued_tokens=64) as scheduler:
        engine.hold()
        admitted = [await submit_token_vectors(scheduler, "t" * 8) for _ in range(8)]
        rejected = await submit_token_vectors(scheduler, "a")
        assert isinstance(await rejected.future, Overloaded)
        engine.release()
        assert isinstance(await admitted[-1].future, RaggedVectors)


async def test_a_group_with_too_many_token_vectors_is_rejected(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        too_many = await submit_token_vectors(scheduler, *["t" * 16] * 2049)
        error = await too_many.future
        assert isinstance(error, InvalidRequest)
        assert "32784 tokens" in error.message
        assert scheduler.load.queued_tokens == 0
        assert not engine.batches
        await embed(scheduler, "goes on")


async def test_only_the_groups_of_failing_token_vectors_fail(
    engine: FakeEngine, run_scheduler: RunScheduler
) -> None:
    async with run_scheduler() as scheduler:
        texts = ["fine", "boom", "nan", "good"]
        pending = [
            scheduler.group(TextGroup((text,), task="embed_tokens", lane="bulk")) for text in texts
        ]
        await scheduler.submit(pending)
        results = [await group.future for group in pending]
        assert scheduler.load.queued_tokens == 0
    kinds = [RaggedVectors, InferenceError, InferenceError, RaggedVectors]
    assert [type(result) for result in results] == kinds


async def test_an_engine_without_token_vectors_rejects_the_group_without_bisecting(
    engine: FakeEngine, run_scheduler: RunScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(task: Task, batch: Any) -> Any:
        engine.batches.append([])
        raise InvalidRequest("none here")

    monkeypatch.setattr(engine, "run", reject)
    async with run_scheduler() as scheduler:
        group = await submit_token_vectors(scheduler, *["text"] * 16)
        error = await group.future
        assert isinstance(error, InvalidRequest)
        assert str(error) == "none here"
    assert len(engine.batches) == 1


async def test_each_model_computes_its_own_texts(run_scheduler: RunScheduler) -> None:
    engines = [FakeEngine(), FakeEngine()]
    async with run_scheduler() as scheduler:
        groups = [
            PendingGroup(TextGroup((text,)), engine, model)
            for text in ("a1", "b2", "c3")
            for engine, model in zip(engines, "xy", strict=True)
        ]
        await scheduler.submit(groups)
        await asyncio.gather(*(group.future for group in groups))
    assert [sorted(text for batch in e.batches for text in batch) for e in engines] == [
        ["a1", "b2", "c3"],
        ["a1", "b2", "c3"],
    ]


async def test_an_engine_runs_no_more_batches_than_it_has_streams() -> None:
    narrow, wide = FakeEngine(), FakeEngine()
    wide.streams = 2
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(1) as one:
        scheduler = Scheduler(
            EmbedderSettings(max_batch_texts=1), streams=2, engine_threads=two, tokenizer_thread=one
        )
        scheduler.start()
        narrow.hold()
        groups = [PendingGroup(TextGroup((text,)), narrow, "narrow") for text in "abc"]
        await scheduler.submit(groups)
        await wait_until(lambda: narrow.batches)
        other = PendingGroup(TextGroup(("d",)), wide, "wide")
        await scheduler.submit([other])
        await other.future
        assert narrow.batches == [["a"]]
        narrow.release()
        await asyncio.gather(*(group.future for group in groups))
        await scheduler.stop()


texts = st.text(alphabet="abcxyz", min_size=1, max_size=SPEC.max_tokens)
groups = st.lists(st.lists(texts, min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=settings().max_examples // 2)
@given(groups, st.integers(64, 200), st.integers(1, 9), st.integers(1, 40))
async def test_each_text_is_computed_once_within_the_budget(
    groups: list[list[str]], budget: int, max_texts: int, lookahead: int
) -> None:
    engine = FakeEngine()
    limits = EmbedderSettings(
        max_batch_tokens=budget, max_batch_texts=max_texts, batch_lookahead_texts=lookahead
    )
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        scheduler = EngineScheduler(engine, limits, engine_threads=one, tokenizer_thread=two)
        scheduler.start()
        results = await asyncio.gather(*await submit(scheduler, *groups))
        await scheduler.stop()
    for group, result in zip(groups, results, strict=True):
        assert isinstance(result, Vectors)
        assert np.array_equal(result.values, np.stack([fake_vector(text) for text in group]))
    computed = sorted(text for batch in engine.batches for text in batch)
    assert computed == sorted(text for group in groups for text in group)
    for batch in engine.batches:
        assert len(batch) <= max_texts
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= budget
    assert scheduler.load.queued_tokens == 0
