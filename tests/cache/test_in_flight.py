import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.cache.in_flight import Computed, SingleFlight
from serve_app.errors import InferenceError
from serve_app.types import Input, Lane, TextGroup
from tests.fakes import FakeBackend, fake_vector


class FakeCompute:
    """Records groups and computes them once `released` is set."""

    def __init__(self) -> None:
        self.groups: list[tuple[Input, ...]] = []
        self.cancelled = 0
        self.released = asyncio.Event()
        self.fail_once = ""
        self._backend = FakeBackend()

    async def __call__(self, group: TextGroup, keys: Sequence[bytes]) -> Computed:
        assert [str(text).encode() for text in group.texts] == list(keys)
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
        vectors = await self._backend.embed(group)
        return vectors.rows(), vectors.timings


@pytest.fixture
def compute() -> FakeCompute:
    return FakeCompute()


@pytest.fixture
def flights(compute: FakeCompute) -> SingleFlight:
    return SingleFlight(compute)


async def run(flights: SingleFlight, texts: str, lane: Lane = "interactive") -> int:
    """Embeds a text for each letter, checks the vectors, and returns how many were shared."""
    group = TextGroup(tuple(texts), lane=lane)
    result = await flights.run(group, [str(text).encode() for text in texts])
    for text, row in zip(texts, result.rows, strict=True):
        assert np.array_equal(row.vector, fake_vector(text))
    return result.shared


async def start(flights: SingleFlight, texts: str, lane: Lane = "interactive") -> asyncio.Task[int]:
    task = asyncio.create_task(run(flights, texts, lane))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_concurrent_requests_for_a_text_compute_it_once(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    tasks = [await start(flights, "a") for _ in range(50)]
    compute.released.set()
    assert sorted(await asyncio.gather(*tasks)) == [0, *[1] * 49]
    assert compute.groups == [("a",)]


async def test_only_texts_that_are_not_in_flight_are_computed(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    tasks = [await start(flights, texts) for texts in ("ab", "cbd", "dea")]
    compute.released.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2]
    assert compute.groups == [("a", "b"), ("c", "d"), ("e",)]


async def test_a_completed_flight_is_not_reused(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    compute.released.set()
    assert await run(flights, "a") == await run(flights, "a") == 0
    assert compute.groups == [("a",), ("a",)]


async def test_a_cancelled_request_does_not_affect_others(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    first, second = await start(flights, "ab"), await start(flights, "bc")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    compute.released.set()
    assert await second == 1
    assert compute.cancelled == 0


async def test_a_flight_without_waiters_is_cancelled(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    tasks = [await start(flights, "a") for _ in range(3)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = await start(flights, "a")  # while the cancelled flight is cleaning up
    compute.released.set()
    assert await late == 0
    assert compute.cancelled == 1
    assert compute.groups == [("a",), ("a",)]


async def test_requests_that_joined_a_failed_flight_retry(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    compute.fail_once = "x"
    first = await start(flights, "xa")
    others = [await start(flights, "ab"), await start(flights, "a")]
    compute.released.set()
    with pytest.raises(InferenceError):
        await first
    assert await asyncio.gather(*others) == [0, 0]
    assert compute.groups == [("x", "a"), ("b",), ("a",), ("a",)]


async def test_interactive_texts_do_not_join_bulk_flights(
    flights: SingleFlight, compute: FakeCompute
) -> None:
    bulk = await start(flights, "ab", "bulk")
    query = await start(flights, "a")
    more_bulk = await start(flights, "a", "bulk")
    compute.released.set()
    assert [await task for task in (bulk, query, more_bulk)] == [0, 0, 1]
    assert compute.groups == [("a", "b"), ("a",)]
