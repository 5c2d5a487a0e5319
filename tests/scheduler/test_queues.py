import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config import EmbedderSettings
from serve_app.engines.base import TokenIds
from serve_app.scheduler.pending import PendingGroup, QueuedText, QueueKey
from serve_app.scheduler.queues import TextQueues
from serve_app.tasks import Task
from serve_app.types import Lane, TextGroup
from tests.fakes import FakeEngine

SETTINGS = EmbedderSettings(bulk_promotion_after_s=1)


def queued_texts(
    lengths: list[int],
    lane: Lane = "interactive",
    arrival_s: float = 0.0,
    deadline_s: float = 100.0,
    task: Task = "embed",
    model: str = "a",
) -> list[QueuedText]:
    texts = tuple("x" * n for n in lengths)
    group = TextGroup(texts, lane=lane, deadline_s=deadline_s, task=task)
    token_ids = [TokenIds([0] * n, truncated=False) for n in lengths]
    pending = PendingGroup(group, FakeEngine(), model)
    return pending.split(token_ids, arrival_s=arrival_s, tokenize_s=0)


def batch_queue(batch: list[QueuedText]) -> QueueKey:
    assert len({text.group.queue for text in batch}) == 1
    return batch[0].group.queue


def next_batch(queues: TextQueues, max_tokens: int, now_s: float) -> list[QueuedText]:
    return queues.next_batch(SETTINGS, lambda key: max_tokens, now_s)


def lane_or_task(batch: list[QueuedText]) -> str:
    key = batch_queue(batch)
    return key.lane if key.task == "embed" else key.task


async def test_interactive_texts_precede_bulk_texts_that_arrived_first() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 10, "bulk"))
    queues.put(queued_texts([5]))
    order = [lane_or_task(next_batch(queues, 1000, 0.5)) for _ in range(2)]
    assert order == ["interactive", "bulk"]


async def test_promoted_bulk_texts_alternate_with_interactive_texts() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 20, "bulk"))
    queues.put(queued_texts([5] * 20))
    order = [lane_or_task(next_batch(queues, 20, 1.5)) for _ in range(6)]
    assert order == ["bulk", "interactive"] * 3


async def test_bulk_texts_and_token_vectors_alternate() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 8, "bulk"))
    queues.put(queued_texts([5] * 8, "bulk", arrival_s=0.1, task="embed_tokens"))
    order = [lane_or_task(next_batch(queues, 20, 0.5)) for _ in range(4)]
    assert order == ["bulk", "embed_tokens"] * 2


async def test_no_promoted_queue_starves_behind_interactive_texts() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 8, "bulk"))
    queues.put(queued_texts([5] * 8, "bulk", task="embed_tokens"))
    queues.put(queued_texts([5] * 20))
    order = [lane_or_task(next_batch(queues, 20, 1.5)) for _ in range(6)]
    assert order == ["bulk", "interactive", "embed_tokens", "interactive", "bulk", "interactive"]


async def test_of_several_interactive_queues_the_one_with_the_oldest_text_is_first() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 8, arrival_s=0.2, model="b"))
    queues.put(queued_texts([5] * 8, arrival_s=0.1))
    queues.put(queued_texts([5] * 4, arrival_s=0.3))
    models = [batch_queue(next_batch(queues, 20, 0.5)).model for _ in range(5)]
    assert models == ["a", "a", "b", "b", "a"]


async def test_a_busy_engine_does_not_hold_up_another_one() -> None:
    queues = TextQueues()
    queues.put(queued_texts([5] * 4))
    queues.put(queued_texts([5] * 4, "bulk", model="b"))
    batch = queues.next_batch(SETTINGS, lambda key: 0 if key.model == "a" else 20, 0.5)
    assert batch_queue(batch).model == "b"
    assert not queues.next_batch(SETTINGS, lambda key: 0, 0.5)
    assert batch_queue(next_batch(queues, 20, 0.5)).model == "a"


async def test_the_oldest_text_runs_even_if_it_exceeds_the_budget() -> None:
    queues = TextQueues()
    queues.put(queued_texts([50, 3, 3]))
    assert [text.length for text in next_batch(queues, 10, 0)] == [50]


async def test_a_text_past_its_deadline_fails_and_is_not_computed() -> None:
    queues = TextQueues()
    expired, in_time = queued_texts([3], deadline_s=1), queued_texts([3], deadline_s=3)
    queues.put(expired)
    queues.put(in_time)
    assert next_batch(queues, 1000, 2.0) == in_time
    assert "waited for the model for 2.0 s" in str(await expired[0].group.future)


arrivals = st.lists(
    st.tuples(
        st.builds(
            QueueKey,
            st.sampled_from(["a", "b"]),
            st.sampled_from(["embed", "embed_tokens"]),
            st.sampled_from(["interactive", "bulk"]),
        ),
        st.lists(st.integers(1, 40), max_size=20),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(arrivals, st.integers(1, 200), st.integers(1, 12), st.integers(1, 30), st.floats(0, 5))
def test_each_text_is_batched_once_within_the_budget_oldest_first(
    arrivals: list[tuple[QueueKey, list[int]]],
    budget: int,
    max_texts: int,
    lookahead: int,
    now_s: float,
) -> None:
    limits = EmbedderSettings(max_batch_texts=max_texts, batch_lookahead_texts=lookahead)

    async def drain_queues() -> None:
        queues, submitted = TextQueues(), list[QueuedText]()
        for queue, lengths in arrivals:
            texts = queued_texts(lengths, queue.lane, task=queue.task, model=queue.model)
            queues.put(texts)
            submitted += texts
        batched, waiting = list[QueuedText](), list(submitted)
        while batch := queues.next_batch(limits, lambda key: budget, now_s):
            queue = batch_queue(batch)
            oldest = next(text for text in waiting if text.group.queue == queue)
            assert oldest in batch
            assert len(batch) <= max_texts
            assert len(batch) == 1 or max(t.length for t in batch) * len(batch) <= budget
            batched += batch
            waiting = [text for text in waiting if text not in batch]
        assert sorted(map(id, batched)) == sorted(map(id, submitted))

    asyncio.run(drain_queues())
