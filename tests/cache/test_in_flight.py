import asyncio

import numpy as np
import pytest

from serve_app.cache.codec import task_codecs
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import InferenceError
from serve_app.inputs import Input
from serve_app.types import Lane, TextGroup, Vectors
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


async def run(lookup: Lookup, texts: str, lane: Lane = "interactive") -> None:
    """Embeds a text for each letter and checks the vectors."""
    vectors = await lookup.run(TextGroup(tuple(texts), lane=lane))
    assert np.array_equal(vectors.values, [fake_vector(text) for text in texts])


async def start(lookup: Lookup, texts: str, lane: Lane = "interactive") -> asyncio.Task[None]:
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
