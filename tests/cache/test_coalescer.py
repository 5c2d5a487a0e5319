import asyncio
import contextvars
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cache.coalescer import Coalescer
from serve_app.errors import EmbedServeError, InferenceError, Unavailable
from serve_app.types import Input, Lane, TextGroup, Vectors
from tests.fakes import FakeBackend

REQUEST = contextvars.ContextVar("request", default="none")


class Way:
    """The way to the next tier: each call waits until the test lets it through."""

    def __init__(self, *, held: bool = True) -> None:
        self.calls: list[list[Input]] = []
        self.cancelled: list[list[Input]] = []
        self.requests: list[str] = []
        self.error: Exception | None = None
        self.at_once = 0
        self._gate = asyncio.Semaphore(0 if held else 1_000_000)
        self._tier = FakeBackend()

    def let_through(self, calls: int) -> None:
        for _ in range(calls):
            self._gate.release()

    async def __call__(self, groups: tuple[TextGroup, ...]) -> Sequence[Vectors | EmbedServeError]:
        texts = [text for group in groups for text in group.texts]
        self.calls.append(texts)
        self.requests.append(REQUEST.get())
        try:
            await self._gate.acquire()
        except asyncio.CancelledError:
            self.cancelled.append(texts)
            raise
        if self.error is not None:
            raise self.error
        return [
            InferenceError("bad") if "bad" in group.texts else await self._tier.embed(group)
            for group in groups
        ]


@pytest.fixture
async def way() -> Way:
    return Way()


def ask(coalescer: Coalescer, *texts: str, lane: Lane = "interactive") -> asyncio.Task[Vectors]:
    async def fetch() -> Vectors:
        return await coalescer(TextGroup(texts, lane=lane))

    return asyncio.create_task(fetch())


async def turns(n: int = 8) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_what_arrives_while_calls_are_in_flight_leaves_together(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=2)
    asked = []
    for text in "abcde":
        asked.append(ask(coalescer, text))
        await turns()
    assert way.calls == [["a"], ["b"]]
    way.let_through(1)
    await turns()
    assert way.calls == [["a"], ["b"], ["c", "d", "e"]]
    way.let_through(2)
    for text, reply in zip("abcde", asked, strict=True):
        assert (await reply).values.tolist() == (
            await FakeBackend().embed(TextGroup((text,)))
        ).values.tolist()


async def test_what_arrives_in_one_turn_of_the_loop_leaves_together(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=4)
    asked = [ask(coalescer, text) for text in "abc"]
    await turns()
    assert way.calls == [["a", "b", "c"]]
    way.let_through(1)
    await asyncio.gather(*asked)


async def test_a_full_call_never_waits(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    asked = [ask(coalescer, "first")]
    await turns()
    asked += [ask(coalescer, str(i)) for i in range(70)]
    await turns()
    assert [len(call) for call in way.calls] == [1, 64]
    way.let_through(3)
    await asyncio.gather(*asked)
    assert [len(call) for call in way.calls] == [1, 64, 6]


async def test_bulk_leaves_at_once_and_alone_and_holds_nobody_up(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    asked = [ask(coalescer, f"bulk {i}", lane="bulk") for i in range(2)]
    asked.append(ask(coalescer, "query"))
    await turns()
    assert way.calls == [["bulk 0"], ["bulk 1"], ["query"]]
    way.let_through(3)
    await asyncio.gather(*asked)


async def test_a_large_group_travels_alone_whatever_its_lane(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    asked = [ask(coalescer, "query"), ask(coalescer, *map(str, range(33)))]
    await turns()
    assert [len(call) for call in way.calls] == [33, 1]
    way.let_through(2)
    await asyncio.gather(*asked)


async def test_one_that_leaves_takes_nobody_along(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    leaves, stays = ask(coalescer, "leaves"), ask(coalescer, "stays")
    await turns()
    leaves.cancel()
    await turns()
    assert way.cancelled == []
    way.let_through(1)
    assert (await stays).computed_count == 1


async def test_what_nobody_waits_for_is_cancelled_or_never_sent(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    in_flight = [ask(coalescer, text) for text in "ab"]
    await turns()
    waiting = ask(coalescer, "c")
    await turns()
    for task in (*in_flight, waiting):
        task.cancel()
    await turns()
    assert way.cancelled == [["a", "b"]]
    stays = ask(coalescer, "d")
    await turns()
    assert way.calls == [["a", "b"], ["d"]]
    way.let_through(1)
    await stays


async def test_an_error_is_its_groups_own(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    bad, good = ask(coalescer, "bad"), ask(coalescer, "good")
    way.let_through(1)
    with pytest.raises(InferenceError):
        await bad
    assert (await good).computed_count == 1


async def test_a_way_that_fails_fails_those_on_it_and_nobody_after(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    way.error = Unavailable("gone")
    way.let_through(2)
    with pytest.raises(Unavailable):
        await ask(coalescer, "a")
    way.error = None
    await ask(coalescer, "b")


async def test_a_call_does_not_run_in_the_context_of_one_of_its_requests(way: Way) -> None:
    coalescer = Coalescer(way, max_in_flight_calls=1)
    REQUEST.set("mine")
    way.let_through(1)
    await coalescer(TextGroup(("a",)))
    assert way.requests == ["none"]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["interactive", "bulk"]), st.booleans(), st.integers(0, 3)),
        max_size=150,
    ),
    st.integers(1, 5),
)
async def test_everyone_who_stays_gets_their_own(
    asked: list[tuple[Lane, bool, int]], max_in_flight_calls: int
) -> None:
    coalescer = Coalescer(Way(held=False), max_in_flight_calls)
    replies = []
    for i, (lane, leaves, pause) in enumerate(asked):
        reply = ask(coalescer, str(i), lane=lane)
        replies.append((i, leaves, reply))
        await turns(pause)
        if leaves:
            reply.cancel()
    async with asyncio.timeout(5):
        for i, leaves, reply in replies:
            if leaves:
                await asyncio.wait([reply])
            else:
                expected = await FakeBackend().embed(TextGroup((str(i),)))
                assert (await reply).values.tolist() == expected.values.tolist()
