import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.codec import task_codecs
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import InferenceError
from serve_app.inputs import Input
from serve_app.types import Lane, TextGroup, Tier, Vectors
from tests.fakes import SPEC, FakeBackend, as_vectors, coalesce, fake_vector


class FakeCompute:
    """Records groups and computes them once `released` is set."""

    def __init__(self) -> None:
        self.groups: list[tuple[Input, ...]] = []
        self.cancelled = 0
        self.released = asyncio.Event()
        self.fail_once = ""
        self._backend = FakeBackend()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.groups.append(group.texts)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0.01)  # cleanup takes time
            raise
        if self.fail_once in group.texts:
            self.fail_once = ""
            raise InferenceError("no")
        return as_vectors(await self._backend.run(group))


@pytest.fixture
def compute() -> FakeCompute:
    return FakeCompute()


@pytest.fixture
def lookup(compute: FakeCompute) -> Lookup:
    return Lookup("space", task_codecs(SPEC), MemoryCache(0), coalesce(compute))


async def run(lookup: Lookup, texts: str, lane: Lane = "interactive") -> list[Tier]:
    """Embeds a text for each letter, checks the vectors and returns their tiers."""
    vectors = await lookup.run(TextGroup(tuple(texts), lane=lane))
    assert np.array_equal(vectors.values, [fake_vector(text) for text in texts])
    return [Tier(tier) for tier in vectors.tiers.tolist()]


async def start(lookup: Lookup, texts: str, lane: Lane = "interactive") -> asyncio.Task[list[Tier]]:
    task = asyncio.create_task(run(lookup, texts, lane))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_concurrent_requests_for_a_text_compute_it_once(
    lookup: Lookup, compute: FakeCompute
) -> None:
    tasks = [await start(lookup, "a") for _ in range(50)]
    compute.released.set()
    await asyncio.gather(*tasks)
    assert compute.groups == [("a",)]


async def test_only_texts_that_are_not_in_flight_are_computed(
    lookup: Lookup, compute: FakeCompute
) -> None:
    tasks = [await start(lookup, texts) for texts in ("ab", "cbd", "dea")]
    compute.released.set()
    await asyncio.gather(*tasks)
    assert compute.groups == [("a", "b"), ("c", "d"), ("e",)]


async def test_a_completed_flight_is_not_reused(lookup: Lookup, compute: FakeCompute) -> None:
    compute.released.set()
    await run(lookup, "a")
    await run(lookup, "a")
    assert compute.groups == [("a",), ("a",)]


async def test_a_cancelled_request_does_not_affect_others(
    lookup: Lookup, compute: FakeCompute
) -> None:
    first, second = await start(lookup, "ab"), await start(lookup, "bc")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    compute.released.set()
    await second
    assert compute.cancelled == 0


async def test_a_flight_without_waiters_is_cancelled(lookup: Lookup, compute: FakeCompute) -> None:
    tasks = [await start(lookup, "a") for _ in range(3)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = await start(lookup, "a")  # while the cancelled flight is cleaning up
    compute.released.set()
    await late
    assert compute.cancelled == 1
    assert compute.groups == [("a",), ("a",)]


async def test_a_request_that_leaves_cancels_only_what_it_started(
    lookup: Lookup, compute: FakeCompute
) -> None:
    first, leaving = await start(lookup, "a"), await start(lookup, "ab")
    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.sleep(0)
    assert compute.groups == [("a",), ("b",)]
    assert compute.cancelled == 1
    compute.released.set()
    await first


async def test_requests_that_joined_a_failed_flight_retry(
    lookup: Lookup, compute: FakeCompute
) -> None:
    compute.fail_once = "x"
    first = await start(lookup, "xa")
    others = [await start(lookup, "ab"), await start(lookup, "a")]
    compute.released.set()
    with pytest.raises(InferenceError):
        await first
    await asyncio.gather(*others)
    assert compute.groups == [("x", "a"), ("b",), ("a",), ("a",)]


async def test_interactive_texts_do_not_join_bulk_flights(
    lookup: Lookup, compute: FakeCompute
) -> None:
    bulk = await start(lookup, "ab", "bulk")
    query = await start(lookup, "a")
    more_bulk = await start(lookup, "a", "bulk")
    compute.released.set()
    await asyncio.gather(bulk, query, more_bulk)
    assert compute.groups == [("a", "b"), ("a",)]


async def test_of_the_requests_for_a_text_in_flight_one_gets_it_as_computed(
    lookup: Lookup, compute: FakeCompute
) -> None:
    tasks = [await start(lookup, texts) for texts in ("ab", "bc", "ca")]
    compute.released.set()
    assert await asyncio.gather(*tasks) == [
        [Tier.COMPUTED, Tier.COMPUTED],
        [Tier.JOINED, Tier.COMPUTED],
        [Tier.JOINED, Tier.JOINED],
    ]


async def test_a_text_is_computed_for_a_request_that_joined_if_the_first_one_left(
    lookup: Lookup, compute: FakeCompute
) -> None:
    first, *others = [await start(lookup, "a") for _ in range(3)]
    first.cancel()
    compute.released.set()
    assert await asyncio.gather(*others) == [[Tier.COMPUTED], [Tier.JOINED]]


async def test_a_request_that_fails_takes_nothing_of_the_flights_that_it_joined(
    lookup: Lookup, compute: FakeCompute
) -> None:
    compute.fail_once = "x"
    first, failing = await start(lookup, "a"), await start(lookup, "ax")
    other = await start(lookup, "a")
    first.cancel()
    compute.released.set()
    with pytest.raises(InferenceError):
        await failing
    assert await other == [Tier.COMPUTED]


class CountingCompute:
    """Computes groups in an order that the test chooses, and counts the texts of those done."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[bool]] = []
        self.computed = Counter[Input]()
        self._backend = FakeBackend()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.waiting.append(asyncio.get_running_loop().create_future())
        if not await self.waiting[-1]:
            raise InferenceError("no")
        self.computed.update(group.texts)
        return as_vectors(await self._backend.run(group))


#: A request for texts in a lane; the end of a call, as a success or not; a request that leaves.
STEPS = st.one_of(
    st.tuples(st.text("abc", min_size=1, max_size=3), st.sampled_from(["interactive", "bulk"])),
    st.tuples(st.integers(0, 5), st.booleans()),
    st.integers(0, 5),
)


async def run_steps(
    lookup: Lookup, compute: CountingCompute, steps: Sequence[Any]
) -> list[tuple[str, list[Tier] | BaseException]]:
    """Returns the texts of each request, and their tiers or the request's error."""
    tasks: list[tuple[str, asyncio.Task[list[Tier]]]] = []
    for step in [*steps, *((0, True) for _ in range(40))]:
        for _ in range(12):
            await asyncio.sleep(0)
        pending = [future for future in compute.waiting if not future.done()]
        match step:
            case (str(letters), lane):
                texts = "".join(dict.fromkeys(letters))
                tasks.append((texts, asyncio.create_task(run(lookup, texts, lane))))
            case (index, succeeds) if pending:
                pending[index % len(pending)].set_result(succeeds)
            case int(index) if index < len(tasks):
                tasks[index][1].cancel()
    replies = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    return [(texts, reply) for (texts, _), reply in zip(tasks, replies, strict=True)]


@given(steps=st.lists(STEPS, max_size=12), tiers=st.integers(1, 2))
async def test_each_computed_text_is_in_one_reply_as_computed(
    steps: Sequence[Any], tiers: int
) -> None:
    compute, codecs = CountingCompute(), task_codecs(SPEC)
    lookup = Lookup("space", codecs, MemoryCache(0), coalesce(compute))
    if tiers == 2:  # an Ingress in front of CacheLookup
        lookup = Lookup("space", codecs, MemoryCache(0), coalesce(lookup.run_encoded))
    replies = await run_steps(lookup, compute, steps)
    delivered = [
        (text, tier)
        for texts, reply in replies
        if isinstance(reply, list)
        for text, tier in zip(texts, reply, strict=True)
    ]
    charged = Counter(text for text, tier in delivered if tier == Tier.COMPUTED)
    assert {text for text, _ in delivered} == {*charged}
    assert charged <= compute.computed
    if all(isinstance(reply, list) for _, reply in replies):
        assert charged == compute.computed
