import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.cache.in_flight import Computed, SingleFlight
from serve_app.errors import InferenceError
from serve_app.types import Input, Lane, TextGroup
from tests.fakes import FakeBackend, fake_vector


class Computes:
    """Computes what it is asked, when it is let."""

    def __init__(self) -> None:
        self.asked: list[tuple[Input, ...]] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.fail_once = ""
        self._fake = FakeBackend()

    async def __call__(self, group: TextGroup, keys: Sequence[bytes]) -> Computed:
        assert [str(text).encode() for text in group.texts] == list(keys)
        self.asked.append(group.texts)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await asyncio.sleep(0.01)  # as what has to tidy up behind itself
            raise
        if self.fail_once in group.texts:
            self.fail_once = ""
            raise InferenceError("no")
        vectors = await self._fake.embed(group)
        return vectors.rows(), vectors.timings


@pytest.fixture
def computes() -> Computes:
    return Computes()


@pytest.fixture
def flights(computes: Computes) -> SingleFlight:
    return SingleFlight(computes)


async def run(flights: SingleFlight, texts: str, lane: Lane = "interactive") -> int:
    """Fetches a text for each letter, checks the vectors, and tells how many it joined."""
    group = TextGroup(tuple(texts), lane=lane)
    landed = await flights.run(group, [str(text).encode() for text in texts])
    for text, row in zip(texts, landed.rows, strict=True):
        assert np.array_equal(row.vector, fake_vector(text))
    return landed.shared


async def start(flights: SingleFlight, texts: str, lane: Lane = "interactive") -> asyncio.Task[int]:
    task = asyncio.create_task(run(flights, texts, lane))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_fifty_requests_for_one_text_compute_it_once(
    flights: SingleFlight, computes: Computes
) -> None:
    tasks = [await start(flights, "a") for _ in range(50)]
    computes.go.set()
    assert sorted(await asyncio.gather(*tasks)) == [0, *[1] * 49]
    assert computes.asked == [("a",)]


async def test_only_what_nobody_computes_is_computed(
    flights: SingleFlight, computes: Computes
) -> None:
    tasks = [await start(flights, texts) for texts in ("ab", "cbd", "dea")]
    computes.go.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2]
    assert computes.asked == [("a", "b"), ("c", "d"), ("e",)]


async def test_once_it_has_landed_it_is_computed_anew(
    flights: SingleFlight, computes: Computes
) -> None:
    computes.go.set()
    assert await run(flights, "a") == await run(flights, "a") == 0
    assert computes.asked == [("a",), ("a",)]


async def test_who_leaves_takes_nothing_from_the_others(
    flights: SingleFlight, computes: Computes
) -> None:
    first, second = await start(flights, "ab"), await start(flights, "bc")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    computes.go.set()
    assert await second == 1
    assert computes.cancelled == 0


async def test_when_all_have_left_the_work_ends(flights: SingleFlight, computes: Computes) -> None:
    tasks = [await start(flights, "a") for _ in range(3)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    late = await start(flights, "a")  # the work is ending, but hasn't ended yet
    computes.go.set()
    assert await late == 0
    assert computes.cancelled == 1
    assert computes.asked == [("a",), ("a",)]


async def test_an_error_is_not_that_of_those_who_joined(
    flights: SingleFlight, computes: Computes
) -> None:
    computes.fail_once = "x"
    first = await start(flights, "xa")
    others = [await start(flights, "ab"), await start(flights, "a")]
    computes.go.set()
    with pytest.raises(InferenceError):
        await first
    assert await asyncio.gather(*others) == [0, 0]
    assert computes.asked == [("x", "a"), ("b",), ("a",), ("a",)]


async def test_a_query_does_not_wait_for_bulk(flights: SingleFlight, computes: Computes) -> None:
    bulk = await start(flights, "ab", "bulk")
    query = await start(flights, "a")
    more_bulk = await start(flights, "a", "bulk")
    computes.go.set()
    assert [await task for task in (bulk, query, more_bulk)] == [0, 0, 1]
    assert computes.asked == [("a", "b"), ("a",)]
