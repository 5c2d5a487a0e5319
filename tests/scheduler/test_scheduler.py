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
from serve_app.scheduler.load import LoadMeter
from serve_app.scheduler.pending import PendingTokenVectors, PendingVectors
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import Input, TextGroup, Vectors
from tests.fakes import SPEC, FakeEngine, fake_vector

Running = Callable[..., AbstractAsyncContextManager[Scheduler]]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def running(engine: FakeEngine) -> Running:
    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Scheduler]:
        with ThreadPoolExecutor(1) as engine_thread, ThreadPoolExecutor(1) as tokenizer_thread:
            scheduler = Scheduler(
                engine,
                EmbedderSettings(**changes),
                engine_threads=engine_thread,
                tokenizer_thread=tokenizer_thread,
            )
            scheduler.start()
            yield scheduler
            engine.release()
            await scheduler.stop()

    return run


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


async def submit(scheduler: Scheduler, *groups: list[str]) -> list[Any]:
    """Submits groups of texts together; their replies, as futures."""
    submissions = [PendingVectors(TextGroup(tuple(texts))) for texts in groups]
    await scheduler.submit(submissions)
    return [submission.reply for submission in submissions]


async def embed(scheduler: Scheduler, *texts: str) -> Vectors:
    (reply,) = await submit(scheduler, list(texts))
    result = await reply
    assert isinstance(result, Vectors)
    return result


async def test_a_lone_text_runs_at_once(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        vectors = await embed(scheduler, "hello")
    assert np.array_equal(vectors.values, fake_vector("hello")[None])
    assert (vectors.tokens.tolist(), vectors.truncated.tolist()) == ([5], [False])


async def test_what_arrives_while_the_engine_is_busy_leaves_together(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        engine.hold()
        first = asyncio.create_task(embed(scheduler, "a"))
        await until(lambda: engine.batches)
        later = [asyncio.create_task(embed(scheduler, text)) for text in "bcdef"]
        await until(lambda: scheduler.load.queued_tokens == 6)
        engine.release()
        await asyncio.gather(first, *later)
    assert engine.batches == [["a"], list("bcdef")]


async def test_texts_of_similar_length_share_a_batch(engine: FakeEngine, running: Running) -> None:
    short, long = [c * 2 for c in "abcdefgh"], [c * 16 for c in "abcd"]
    mixed = [text for pair in zip(short[:4], long, strict=True) for text in pair] + short[4:]
    async with running(max_batch_tokens=64) as scheduler:
        vectors = await embed(scheduler, *mixed)
    assert np.array_equal(vectors.values, np.stack([fake_vector(text) for text in mixed]))
    padding = [sum(max(map(len, b)) - len(text) for text in b) for b in engine.batches]
    assert sum(padding) == 0
    assert engine.batches == [short, long]


@pytest.mark.parametrize("speed", [None, 10.0])
async def test_what_does_not_fit_is_refused_whole_and_at_once(
    engine: FakeEngine, running: Running, speed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadMeter, "tokens_per_s", speed)
    async with running(max_queued_tokens=64) as scheduler:
        engine.hold()
        taken = (await submit(scheduler, ["x" * 10] * 6))[0]
        (refused,) = await submit(scheduler, ["y", "z" * 10])
        error = await refused
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == (6 if speed else 1)  # 60 tokens at 10 a second
        (fits,) = await submit(scheduler, ["y"])
        engine.release()
        assert isinstance(await taken, Vectors)
        assert isinstance(await fits, Vectors)
        assert not any("z" in text for batch in engine.batches for text in batch)


async def test_more_tokens_than_a_request_may_have_are_refused_before_they_wait(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_request_tokens=64) as scheduler:
        refused, fits = await submit(scheduler, ["x" * 16] * 5, ["y" * 16] * 4)
        error = await refused
        assert isinstance(error, InvalidRequest)
        assert "80 tokens; at most 64" in str(error)
        assert isinstance(await fits, Vectors)
    assert not any("x" * 16 in batch for batch in engine.batches)


async def test_a_group_larger_than_the_queue_is_taken_when_nothing_else_waits(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_queued_tokens=64) as scheduler:
        vectors = await embed(scheduler, *["x" * 16] * 100)
    assert len(vectors.values) == 100


async def test_a_caller_that_has_gone_costs_nothing(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        engine.hold()
        (first,) = await submit(scheduler, ["first"])
        await until(lambda: engine.batches)
        (gone,) = await submit(scheduler, ["gone"] * 50)
        (stays,) = await submit(scheduler, ["stays"])
        assert scheduler.load.queued_tokens == 5 + 50 * 4 + 5
        gone.cancel()
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 5 + 5  # at once, though the engine is busy
        engine.release()
        await asyncio.gather(first, stays)
        assert scheduler.load.queued_tokens == 0
    assert engine.batches == [["first"], ["stays"]]


async def test_a_caller_that_goes_while_its_texts_are_tokenized_costs_nothing(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        gone = PendingVectors(TextGroup(("gone",)))
        submitting = asyncio.create_task(scheduler.submit([gone]))
        await asyncio.sleep(0)
        gone.reply.cancel()
        await submitting
        await embed(scheduler, "stays")
    assert engine.batches == [["stays"]]


async def test_one_failing_text_among_500_fails_alone(engine: FakeEngine, running: Running) -> None:
    groups = [[f"text {i}"] for i in range(500)]
    groups[123] = ["boom"]
    async with running() as scheduler:
        replies = await asyncio.gather(*await submit(scheduler, *groups))
        assert (await embed(scheduler, "fine")).values.shape == (1, 8)
        assert scheduler.load.queued_tokens == 0
    failed = [i for i, reply in enumerate(replies) if isinstance(reply, InferenceError)]
    assert failed == [123]
    assert "the text 'boom'" in str(replies[123])
    for group, reply in zip(groups, replies, strict=True):
        assert group == ["boom"] or np.array_equal(reply.values[0], fake_vector(group[0]))


async def test_what_does_not_fit_into_memory_is_halved_and_not_tried_as_large_again(
    engine: FakeEngine, running: Running
) -> None:
    engine.memory_tokens = 40
    async with running() as scheduler:
        for _ in range(2):
            vectors = await embed(scheduler, *["x" * 8] * 32)
            assert np.array_equal(vectors.values, np.stack([fake_vector("x" * 8)] * 32))
    too_large = [len(batch) for batch in engine.batches if len(batch) * 8 > 40]
    assert too_large == [32, 16, 8, 8, 16, 8, 8]  # the first one and its halves; then no more


async def test_a_text_that_fits_into_no_memory_fails_alone(
    engine: FakeEngine, running: Running
) -> None:
    engine.memory_tokens = 4
    async with running() as scheduler:
        large, small = await submit(scheduler, ["x" * 8], ["y"])
        assert "MemoryError" in str(await large)
        assert isinstance(await small, Vectors)


async def test_an_engine_with_two_streams_computes_two_batches_at_a_time(running: Running) -> None:
    engine = FakeEngine()
    engine.streams = 2
    engine.hold()
    with ThreadPoolExecutor(2) as two, ThreadPoolExecutor(1) as one:
        scheduler = Scheduler(engine, EmbedderSettings(), engine_threads=two, tokenizer_thread=one)
        scheduler.start()
        replies = await submit(scheduler, ["a"])
        await until(lambda: len(engine.batches) == 1)
        replies += await submit(scheduler, ["b"])
        await until(lambda: len(engine.batches) == 2)
        engine.release()
        assert all(isinstance(reply, Vectors) for reply in await asyncio.gather(*replies))
        await scheduler.stop()


async def test_interactive_texts_wait_for_no_bulk_but_the_batch_that_runs(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_batch_texts=4) as scheduler:
        engine.hold()
        bulk = PendingVectors(TextGroup(("bulk",) * 12, lane="bulk"))
        await scheduler.submit([bulk])
        await until(lambda: engine.batches)
        (query,) = await submit(scheduler, ["query"])
        engine.release()
        await asyncio.gather(query, bulk.reply)
    assert [batch[0] for batch in engine.batches] == ["bulk", "query", "bulk", "bulk"]


async def test_past_its_deadline_a_text_costs_nothing(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        engine.hold()
        (first,) = await submit(scheduler, ["first"])
        await until(lambda: engine.batches)
        late = PendingVectors(TextGroup(("late",), timeout_s=0.01))
        await scheduler.submit([late])
        await asyncio.sleep(0.02)
        engine.release()
        await first
        assert isinstance(await late.reply, DeadlineExceeded)
        await until(lambda: scheduler.load.queued_tokens == 0)
    assert engine.batches == [["first"]]


async def test_it_tells_where_the_time_went(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        engine.hold()
        started = time.monotonic()
        first = asyncio.create_task(embed(scheduler, "first"))
        await until(lambda: engine.batches)
        second = asyncio.create_task(embed(scheduler, "second"))
        await until(lambda: scheduler.load.queued_tokens == 11)
        await asyncio.sleep(0.05)
        engine.release()
        timings = [(await task).timings for task in (first, second)]
        took_s = time.monotonic() - started
    assert timings[0].infer_s >= 0.05 > timings[0].queue_s
    assert timings[1].queue_s >= 0.05 > timings[1].infer_s
    assert all(sum(timing) <= took_s for timing in timings)


async def test_a_vector_that_is_not_finite_is_never_handed_out(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        bad, good = await submit(scheduler, ["nan"], ["fine"])
        error = await bad
        assert isinstance(error, InferenceError)
        assert "no finite vector" in str(error)
        assert isinstance(await good, Vectors)


async def test_token_ids_are_what_the_engine_reads_with_no_prompt(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        job = PendingVectors(TextGroup(("ab", (97, 98)), prompt="query: "))
        await scheduler.submit([job])
        vectors = await job.reply
    assert isinstance(vectors, Vectors)
    assert np.array_equal(vectors.values, [fake_vector("query: ab"), fake_vector("ab")])
    assert vectors.tokens.tolist() == [9, 2]


@pytest.mark.parametrize("many", [1, 300])  # in place, and in the thread for long texts
async def test_token_ids_that_are_refused_fail_alone(
    engine: FakeEngine, running: Running, many: int
) -> None:
    groups: list[tuple[Input, ...]] = [("a text", (97,)), ("beside", (-1,)), ("another",) * many]
    async with running(max_batch_texts=500) as scheduler:
        jobs = [PendingVectors(TextGroup(texts)) for texts in groups]
        await scheduler.submit(jobs)
        first, refused, last = await asyncio.gather(*(job.reply for job in jobs))
        assert isinstance(first, Vectors)
        assert isinstance(last, Vectors)
        assert isinstance(refused, InvalidRequest)
        await until(lambda: scheduler.load.queued_tokens == 0)
    assert np.array_equal(first.values, [fake_vector("a text"), fake_vector("a")])
    assert np.array_equal(last.values, np.stack([fake_vector("another")] * many))
    assert not any("beside" in batch for batch in engine.batches)


async def test_a_broken_tokenizer_is_an_error_not_a_hang(
    engine: FakeEngine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as scheduler:
        monkeypatch.setattr(engine, "tokenize", lambda texts: 1 / 0)
        (reply,) = await submit(scheduler, ["a"])
        assert isinstance(await reply, InferenceError)


async def test_a_stalled_engine_is_told(engine: FakeEngine, running: Running) -> None:
    async with running(stall_timeout_s=0.02) as scheduler:
        scheduler.check()
        engine.hold()
        (reply,) = await submit(scheduler, ["a"])
        await until(lambda: engine.batches)
        await asyncio.sleep(0.03)
        with pytest.raises(InferenceError, match="has been running"):
            scheduler.check()
        engine.release()
        await reply
        scheduler.check()


async def test_stopping_answers_whoever_waits(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        engine.hold()
        (running_now,) = await submit(scheduler, ["running"])
        await until(lambda: engine.batches)
        (waiting,) = await submit(scheduler, ["waiting"])
        await scheduler.stop()
        assert isinstance(await running_now, Unavailable)
        assert isinstance(await waiting, Unavailable)
        (late,) = await submit(scheduler, ["late"])
        assert isinstance(await late, Unavailable)
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 0


async def test_new_settings_reach_the_next_batch(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        scheduler.settings = EmbedderSettings(max_batch_texts=2)
        await embed(scheduler, *"abcd")
    assert [len(batch) for batch in engine.batches] == [2, 2]


async def ask_for_tokens(scheduler: Scheduler, *texts: Input) -> PendingTokenVectors:
    asked = PendingTokenVectors(TextGroup(texts))
    await scheduler.submit([asked])
    return asked


async def test_vectors_of_tokens_are_one_for_each_token(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        found = await (await ask_for_tokens(scheduler, "ab", "c" * 30, (100,))).reply
    assert isinstance(found, list)
    for (values, _), text in zip(found, ["ab", "c" * 16, "d"], strict=True):
        assert np.array_equal(values, np.stack([fake_vector(letter) for letter in text]))
    assert [one.truncated for one in found] == [False, True, False]


async def test_vectors_of_tokens_come_in_batches_and_interactive_texts_wait_for_one_at_most(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_batch_tokens=64) as scheduler:
        engine.hold()
        tokens = await ask_for_tokens(scheduler, *["t" * 16] * 12)
        await until(lambda: engine.batches)
        (query,) = await submit(scheduler, ["query"])
        engine.release()
        assert isinstance(await query, Vectors)
        assert isinstance(await tokens.reply, list)
    assert [batch[0] for batch in engine.batches] == ["t" * 16, "query", "t" * 16, "t" * 16]
    assert {len(batch) for batch in engine.batches} == {1, 4}


async def test_who_asks_for_tokens_and_leaves_takes_what_waits_with_it(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_batch_tokens=64) as scheduler:
        engine.hold()
        leaves = await ask_for_tokens(scheduler, *["t" * 16] * 12)
        await until(lambda: engine.batches)
        leaves.reply.cancel()
        await asyncio.sleep(0)
        assert scheduler.load.queued_tokens == 64  # the batch that runs
        engine.release()
        await embed(scheduler, "stays")
        await until(lambda: scheduler.load.queued_tokens == 0)
    assert len(engine.batches) == 2


async def test_vectors_of_tokens_are_refused_when_the_queue_is_full(
    engine: FakeEngine, running: Running
) -> None:
    async with running(max_queued_tokens=64) as scheduler:
        engine.hold()
        taken = await ask_for_tokens(scheduler, *["t" * 16] * 4)
        refused = await ask_for_tokens(scheduler, "a")
        assert isinstance(await refused.reply, Overloaded)
        engine.release()
        assert isinstance(await taken.reply, list)


async def test_more_vectors_of_tokens_than_memory_should_hold_are_refused(
    engine: FakeEngine, running: Running
) -> None:
    async with running() as scheduler:
        too_many = await ask_for_tokens(scheduler, *["t" * 16] * 2049)
        error = await too_many.reply
        assert isinstance(error, InvalidRequest)
        assert "32784 tokens" in error.message
        assert scheduler.load.queued_tokens == 0
        assert not engine.batches
        await embed(scheduler, "goes on")


async def test_a_text_whose_tokens_fail_fails_alone(engine: FakeEngine, running: Running) -> None:
    async with running() as scheduler:
        groups = ["fine", "boom", "nan", "good"]
        asked = [PendingTokenVectors(TextGroup((text,))) for text in groups]
        await scheduler.submit(asked)
        replies = [await one.reply for one in asked]
        assert scheduler.load.queued_tokens == 0
    assert [type(reply) for reply in replies] == [list, InferenceError, InferenceError, list]


async def test_an_engine_that_has_no_vectors_of_tokens_says_so(
    engine: FakeEngine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(batch: Any) -> Any:
        engine.batches.append([])
        raise InvalidRequest("none here")

    monkeypatch.setattr(engine, "embed_tokens", refuse)
    async with running() as scheduler:
        asked = await ask_for_tokens(scheduler, *["text"] * 16)
        error = await asked.reply
        assert isinstance(error, InvalidRequest)
        assert str(error) == "none here"
    assert len(engine.batches) == 1  # nothing is gained by asking for half of them


texts = st.text(alphabet="abcxyz", min_size=1, max_size=SPEC.max_tokens)
groups = st.lists(st.lists(texts, min_size=1, max_size=12), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(groups, st.integers(64, 200), st.integers(1, 9), st.integers(1, 40))
async def test_no_text_is_lost_or_doubled_and_budgets_hold(
    groups: list[list[str]], budget: int, most: int, lookahead: int
) -> None:
    engine = FakeEngine()
    limits = EmbedderSettings(
        max_batch_tokens=budget, max_batch_texts=most, batch_lookahead_texts=lookahead
    )
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        scheduler = Scheduler(engine, limits, engine_threads=one, tokenizer_thread=two)
        scheduler.start()
        results = await asyncio.gather(*await submit(scheduler, *groups))
        await scheduler.stop()
    for group, result in zip(groups, results, strict=True):
        assert isinstance(result, Vectors)
        assert np.array_equal(result.values, np.stack([fake_vector(text) for text in group]))
    computed = sorted(text for batch in engine.batches for text in batch)
    assert computed == sorted(text for group in groups for text in group)
    for batch in engine.batches:
        assert len(batch) <= most
        assert len(batch) == 1 or max(map(len, batch)) * len(batch) <= budget
    assert scheduler.load.queued_tokens == 0
