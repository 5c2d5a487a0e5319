import asyncio
import contextvars

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cache.coalescer import Deliver, GroupCoalescer, Result
from serve_app.cache.codec import VectorCodec
from serve_app.errors import InferenceError, Unavailable
from serve_app.inputs import Input
from serve_app.types import Lane, TextGroup, Vectors
from tests.fakes import DIM, FakeBackend, as_vectors

CODEC = VectorCodec(DIM)
REQUEST = contextvars.ContextVar("request", default="none")


class GatedSend:
    """Sends to a fake next tier; each call waits until the test lets it complete."""

    def __init__(self, *, gated: bool = True) -> None:
        self.calls: list[list[Input]] = []
        self.cancelled: list[list[Input]] = []
        self.requests: list[str] = []
        self.error: Exception | None = None
        self._gate = asyncio.Semaphore(0 if gated else 1_000_000)
        self._next_tier = FakeBackend()

    def complete(self, calls: int) -> None:
        for _ in range(calls):
            self._gate.release()

    async def __call__(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
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
        for i, group in enumerate(groups):
            bad = "bad" in group.texts
            vectors = as_vectors(await self._next_tier.run(group))
            deliver(i, InferenceError("bad") if bad else CODEC.encode(vectors))


@pytest.fixture
async def send() -> GatedSend:
    return GatedSend()


def start(
    coalescer: GroupCoalescer, *texts: str, lane: Lane = "interactive"
) -> asyncio.Task[Vectors]:
    return asyncio.create_task(embed(coalescer, TextGroup(texts, lane=lane)))


async def embed(coalescer: GroupCoalescer, group: TextGroup) -> Vectors:
    reply: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    submission = coalescer.submit(group, reply.set_result)
    try:
        result = await reply
    except asyncio.CancelledError:
        submission.cancel()
        raise
    if isinstance(result, Exception):
        raise result
    return CODEC.decode(result)


async def run_loop(turns: int = 8) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_groups_that_arrive_while_calls_are_in_flight_are_sent_together(
    send: GatedSend,
) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=2)
    replies = []
    for text in "abcde":
        replies.append(start(coalescer, text))
        await run_loop()
    assert send.calls == [["a"], ["b"]]
    send.complete(1)
    await run_loop()
    assert send.calls == [["a"], ["b"], ["c", "d", "e"]]
    send.complete(2)
    for text, reply in zip("abcde", replies, strict=True):
        assert (await reply).values.tolist() == (
            as_vectors(await FakeBackend().run(TextGroup((text,))))
        ).values.tolist()


async def test_groups_of_one_turn_of_the_loop_are_sent_together(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=4)
    replies = [start(coalescer, text) for text in "abc"]
    await run_loop()
    assert send.calls == [["a", "b", "c"]]
    send.complete(1)
    await asyncio.gather(*replies)


async def test_a_burst_is_split_evenly_over_the_calls_that_may_be_sent(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=4)
    replies = [start(coalescer, str(i)) for i in range(40)]
    await run_loop()
    assert [len(texts) for texts in send.calls] == [10, 10, 10, 10]
    send.complete(4)
    await asyncio.gather(*replies)


async def test_a_full_call_never_waits(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    replies = [start(coalescer, "first")]
    await run_loop()
    replies += [start(coalescer, str(i)) for i in range(70)]
    await run_loop()
    assert [len(call) for call in send.calls] == [1, 64]
    send.complete(3)
    await asyncio.gather(*replies)
    assert [len(call) for call in send.calls] == [1, 64, 6]


async def test_a_group_of_long_texts_is_sent_at_once_in_its_own_call(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    long = "a long text " * 2000
    replies = [start(coalescer, text) for text in ("first", long, "query")]
    await run_loop()
    assert send.calls == [[long], ["first", "query"]]
    send.complete(2)
    await asyncio.gather(*replies)


async def test_a_bulk_group_is_sent_at_once_in_its_own_call(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    replies = [start(coalescer, f"bulk {i}", lane="bulk") for i in range(2)]
    replies.append(start(coalescer, "query"))
    await run_loop()
    assert send.calls == [["bulk 0"], ["bulk 1"], ["query"]]
    send.complete(3)
    await asyncio.gather(*replies)


async def test_a_large_group_is_sent_in_its_own_call(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    replies = [start(coalescer, "query"), start(coalescer, *map(str, range(33)))]
    await run_loop()
    assert [len(call) for call in send.calls] == [33, 1]
    send.complete(2)
    await asyncio.gather(*replies)


async def test_a_cancelled_group_does_not_affect_others(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    cancelled, other = start(coalescer, "cancelled"), start(coalescer, "other")
    await run_loop()
    cancelled.cancel()
    await run_loop()
    assert send.cancelled == []
    send.complete(1)
    assert (await other).computed_count == 1


async def test_a_call_without_waiters_is_cancelled_or_never_sent(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    in_flight = [start(coalescer, text) for text in "ab"]
    await run_loop()
    waiting = start(coalescer, "c")
    await run_loop()
    for task in (*in_flight, waiting):
        task.cancel()
    await run_loop()
    assert send.cancelled == [["a", "b"]]
    other = start(coalescer, "d")
    await run_loop()
    assert send.calls == [["a", "b"], ["d"]]
    send.complete(1)
    await other


async def test_a_result_is_delivered_before_its_call_ends(send: GatedSend) -> None:
    ended = asyncio.Event()

    async def send_slowly(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        deliver(0, CODEC.encode(as_vectors(await FakeBackend().run(groups[0]))))
        await ended.wait()
        deliver(1, CODEC.encode(as_vectors(await FakeBackend().run(groups[1]))))

    coalescer = GroupCoalescer(send_slowly, max_in_flight_calls=1)
    first, second = start(coalescer, "a"), start(coalescer, "b")
    assert (await first).computed_count == 1
    assert not second.done()
    ended.set()
    await second


async def test_the_error_of_a_group_does_not_affect_others(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    bad, good = start(coalescer, "bad"), start(coalescer, "good")
    send.complete(1)
    with pytest.raises(InferenceError):
        await bad
    assert (await good).computed_count == 1


async def test_a_failed_call_fails_its_groups_only(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    send.error = Unavailable("down")
    send.complete(2)
    with pytest.raises(Unavailable):
        await start(coalescer, "a")
    send.error = None
    await start(coalescer, "b")


async def test_a_call_runs_outside_the_context_of_its_requests(send: GatedSend) -> None:
    coalescer = GroupCoalescer(send, max_in_flight_calls=1)
    REQUEST.set("a request")
    send.complete(1)
    await embed(coalescer, TextGroup(("a",)))
    assert send.requests == ["none"]


@settings(max_examples=settings().max_examples // 2)
@given(
    st.lists(
        st.tuples(st.sampled_from(["interactive", "bulk"]), st.booleans(), st.integers(0, 3)),
        max_size=150,
    ),
    st.integers(1, 5),
)
async def test_each_group_gets_its_own_vectors(
    groups: list[tuple[Lane, bool, int]], max_in_flight_calls: int
) -> None:
    coalescer = GroupCoalescer(GatedSend(gated=False), max_in_flight_calls)
    replies = []
    for i, (lane, cancelled, pause) in enumerate(groups):
        reply = start(coalescer, str(i), lane=lane)
        replies.append((i, cancelled, reply))
        await run_loop(pause)
        if cancelled:
            reply.cancel()
    async with asyncio.timeout(30):
        for i, cancelled, reply in replies:
            if cancelled:
                await asyncio.wait([reply])
            else:
                expected = as_vectors(await FakeBackend().run(TextGroup((str(i),))))
                assert (await reply).values.tolist() == expected.values.tolist()
