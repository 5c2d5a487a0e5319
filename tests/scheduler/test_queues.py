import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config import EmbedderSettings
from serve_app.engines.base import TokenIds
from serve_app.scheduler.pending import (
    PendingGroup,
    PendingTokenVectors,
    PendingVectors,
    Queue,
    QueuedText,
)
from serve_app.scheduler.queues import TextQueues
from serve_app.types import Lane, TextGroup

SETTINGS = EmbedderSettings(bulk_promotion_after_s=1)


def submitted(
    lengths: list[int],
    lane: Lane = "interactive",
    at_s: float = 0.0,
    timeout_s: float = 100.0,
    tokens: bool = False,
) -> list[QueuedText]:
    group = TextGroup(tuple("x" * n for n in lengths), lane=lane, timeout_s=timeout_s)
    read = [TokenIds([0] * n, truncated=False) for n in lengths]
    asked: PendingGroup[Any] = PendingTokenVectors(group) if tokens else PendingVectors(group)
    return asked.tokenized(read, arrived_s=at_s, tokenize_s=0)


def queue_of(batch: list[QueuedText]) -> Queue:
    assert len({text.submission.queue for text in batch}) == 1
    return batch[0].submission.queue


async def test_interactive_goes_before_bulk_that_came_first() -> None:
    lanes = TextQueues()
    lanes.put(submitted([5] * 10, "bulk"))
    lanes.put(submitted([5]))
    taken = [queue_of(lanes.next_batch(SETTINGS, 1000, 0.5)) for _ in range(2)]
    assert taken == ["interactive", "bulk"]


async def test_bulk_that_has_waited_takes_turns_with_interactive() -> None:
    lanes = TextQueues()
    lanes.put(submitted([5] * 20, "bulk"))
    lanes.put(submitted([5] * 20))
    taken = [queue_of(lanes.next_batch(SETTINGS, 20, 1.5)) for _ in range(6)]
    assert taken == ["bulk", "interactive"] * 3


async def test_bulk_and_tokens_take_turns_with_each_other() -> None:
    lanes = TextQueues()
    lanes.put(submitted([5] * 8, "bulk"))
    lanes.put(submitted([5] * 8, at_s=0.1, tokens=True))
    taken = [queue_of(lanes.next_batch(SETTINGS, 20, 0.5)) for _ in range(4)]
    assert taken == ["bulk", "tokens"] * 2


async def test_none_that_has_waited_starves_behind_interactive_texts() -> None:
    lanes = TextQueues()
    lanes.put(submitted([5] * 8, "bulk"))
    lanes.put(submitted([5] * 8, tokens=True))
    lanes.put(submitted([5] * 20))
    taken = [queue_of(lanes.next_batch(SETTINGS, 20, 1.5)) for _ in range(6)]
    assert taken == ["bulk", "interactive", "tokens", "interactive", "bulk", "interactive"]


async def test_the_oldest_goes_even_when_it_is_longer_than_the_budget() -> None:
    lanes = TextQueues()
    lanes.put(submitted([50, 3, 3]))
    assert [text.length for text in lanes.next_batch(SETTINGS, 10, 0)] == [50]


async def test_past_its_deadline_a_text_is_answered_and_not_computed() -> None:
    lanes = TextQueues()
    late, in_time = submitted([3], timeout_s=1), submitted([3], timeout_s=3)
    lanes.put(late)
    lanes.put(in_time)
    assert lanes.next_batch(SETTINGS, 1000, 2.0) == in_time
    assert "waited for the model for 1 s" in str(await late[0].submission.reply)


arrivals = st.lists(
    st.tuples(
        st.sampled_from(["interactive", "bulk", "tokens"]),
        st.lists(st.integers(1, 40), max_size=20),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(arrivals, st.integers(1, 200), st.integers(1, 12), st.integers(1, 30), st.floats(0, 5))
def test_every_text_leaves_once_inside_the_budget_and_none_starves(
    arrivals: list[tuple[Queue, list[int]]], budget: int, most: int, lookahead: int, now_s: float
) -> None:
    limits = EmbedderSettings(max_batch_texts=most, batch_lookahead_texts=lookahead)

    async def leave() -> None:
        lanes, put = TextQueues(), list[QueuedText]()
        for queue, lengths in arrivals:
            tokens = queue == "tokens"
            texts = submitted(lengths, "bulk" if queue == "bulk" else "interactive", tokens=tokens)
            lanes.put(texts)
            put += texts
        taken, oldest = list[QueuedText](), list(put)
        while batch := lanes.next_batch(limits, budget, now_s):
            queue = queue_of(batch)
            first = next(text for text in oldest if text.submission.queue == queue)
            assert first in batch  # whoever waits longest in its queue is never passed over
            assert len(batch) <= most
            assert len(batch) == 1 or max(t.length for t in batch) * len(batch) <= budget
            taken += batch
            oldest = [text for text in oldest if text not in batch]
        assert sorted(map(id, taken)) == sorted(map(id, put))

    asyncio.run(leave())
