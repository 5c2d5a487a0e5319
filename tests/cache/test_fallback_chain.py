"""Chains of engines: which engine computes a group, when one fails, hangs or is absent."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from serve_app.cache.coalescer import Deliver, GroupCoalescer, Result, Send
from serve_app.cache.codec import task_codecs
from serve_app.cache.engine_link import EngineLink
from serve_app.cache.fallback_chain import FallbackChain, SendChain
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    Overloaded,
    TextTooLong,
    Unavailable,
    UpstreamError,
)
from serve_app.meter import Meter
from serve_app.metrics import FALLBACK_TEXTS
from serve_app.types import EncodedVectors, TextGroup
from tests.fakes import SPEC, FakeBackend, fake_send, fake_vector

CODECS = task_codecs(SPEC)
AFTER_S = 0.02


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s


CLOCK = Clock()


class FakeEngine(FakeBackend):
    """An engine in another process, which may be absent, hang, or fail for texts with "poison"."""

    def __init__(self) -> None:
        super().__init__()
        self.is_present = asyncio.Event()
        self.is_present.set()
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.calls = self.cancelled = self.pings = 0

    async def ping(self) -> None:
        self.pings += 1
        await self.is_present.wait()

    async def send(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        self.calls += 1
        try:
            await self.is_present.wait()
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for i, group in enumerate(groups):
            if "poison" in group.texts:
                deliver(i, InferenceError("poison"))
            else:
                (result,) = await compute(fake_send(self.run), group)
                deliver(i, result)


@pytest.fixture
async def engines() -> list[FakeEngine]:
    return [FakeEngine(), FakeEngine()]


def links(engines: Sequence[FakeEngine]) -> list[EngineLink]:
    return [
        EngineLink(f"m{i}", engine.ping, after_s=AFTER_S, clock=CLOCK.now)
        for i, engine in enumerate(engines)
    ]


def chain(engines: Sequence[FakeEngine], meter: Meter | None = None) -> SendChain:
    sends = [engine.send for engine in engines]
    return SendChain(links(engines), sends, (meter or Meter()).for_model("m0"))


async def compute(send: Send, *groups: TextGroup) -> list[Result]:
    results = dict[int, Result]()

    def deliver(index: int, result: Result) -> None:
        assert index not in results, "The result was delivered twice."
        results[index] = result

    async with asyncio.timeout(30):
        await send(groups, deliver)
    return [results[i] for i in range(len(groups))]


def group(*texts: str, left_s: float = 10) -> TextGroup:
    return TextGroup(texts, deadline_s=time.monotonic() + left_s)


def is_vector(result: Result, text: str) -> bool:
    assert isinstance(result, EncodedVectors)
    return np.array_equal(CODECS["embed"].decode(result).values, [fake_vector(text)])


async def test_the_first_engine_computes(engines: list[FakeEngine]) -> None:
    (result,) = await compute(chain(engines), group("a"))
    assert is_vector(result, "a")
    assert [engine.calls for engine in engines] == [1, 0]


@pytest.mark.parametrize(
    "error",
    [Unavailable("no"), InferenceError("no"), UpstreamError("no"), Overloaded("full")],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_of_the_engine_is_not_seen(
    engines: list[FakeEngine], error: EmbedServeError
) -> None:
    meter = Meter()
    engines[0].error = error
    (result,) = await compute(chain(engines, meter), group("a"))
    assert is_vector(result, "a")
    assert meter.value(FALLBACK_TEXTS, "m1", "m0") == 1


@pytest.mark.parametrize("error", [InvalidRequest("no"), TextTooLong("no"), DeadlineExceeded("no")])
async def test_an_error_of_the_request_is_final(
    engines: list[FakeEngine], error: EmbedServeError
) -> None:
    engines[0].error = error
    assert await compute(chain(engines), group("a")) == [error]
    assert engines[1].calls == 0


async def test_only_the_groups_that_failed_fall_back(engines: list[FakeEngine]) -> None:
    meter = Meter()
    results = await compute(chain(engines, meter), group("a"), group("poison", "b"), group("c"))
    assert is_vector(results[0], "a")
    assert is_vector(results[2], "c")
    assert isinstance(results[1], InferenceError)
    assert [group.texts for group in engines[0].groups] == [("a",), ("c",)]
    engines[0].error = Unavailable("no")
    results = await compute(chain(engines, meter), group("a"), group("poison"), group("b", "c"))
    assert [isinstance(result, EncodedVectors) for result in results] == [True, False, True]
    assert meter.value(FALLBACK_TEXTS, "m1", "m0") == 3


async def test_the_error_of_the_first_engine_is_that_of_the_request(
    engines: list[FakeEngine],
) -> None:
    first, *_ = errors = [Overloaded("full", 7), Unavailable("no"), InferenceError("no")]
    for engine, error in zip([*engines, third := FakeEngine()], errors, strict=True):
        engine.error = error
    assert await compute(chain([*engines, third]), group("a")) == [first]
    third.error = rejection = InvalidRequest("too many tokens")
    assert await compute(chain([*engines, third]), group("a")) == [rejection]


async def test_no_engine_gets_a_group_whose_deadline_has_passed(engines: list[FakeEngine]) -> None:
    engines[0].error = error = Unavailable("no")
    assert await compute(chain(engines), group("a", left_s=0)) == [error]
    assert engines[1].calls == 0


async def test_an_absent_engine_is_waited_for_once_and_then_left_out(
    engines: list[FakeEngine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    first, second = engines
    first.is_present.clear()
    absent = chain(engines)
    for i in range(20):
        (result,) = await compute(absent, group(f"{i}"))
        assert is_vector(result, f"{i}")
    assert (first.calls, first.cancelled, first.pings, second.calls) == (1, 1, 1, 20)
    first.is_present.set()
    await until(lambda: len(caplog.messages) == 2)
    assert "m0 fails, and its fallback answers: No replica" in caplog.messages[0]
    assert caplog.messages[1] == "m0 answers again."
    await compute(absent, group("b"))
    assert (first.calls, second.calls) == (2, 20)


async def test_a_slow_engine_that_is_present_is_waited_for(engines: list[FakeEngine]) -> None:
    first, second = engines
    first.is_open.clear()
    running = asyncio.create_task(compute(chain(engines), group("a")))
    await until(lambda: first.pings >= 3)
    first.is_open.set()
    (result,) = await running
    assert is_vector(result, "a")
    assert (first.calls, first.cancelled, second.calls) == (1, 0, 0)


async def test_a_call_that_is_cancelled_cancels_that_of_the_engine(
    engines: list[FakeEngine],
) -> None:
    engines[0].is_open.clear()
    running = asyncio.create_task(compute(chain(engines), group("a")))
    await until(lambda: engines[0].pings >= 1)
    running.cancel()
    await until(lambda: engines[0].cancelled == 1)
    assert engines[1].calls == 0


async def test_a_change_of_state_is_logged_once(
    engines: list[FakeEngine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    failing = chain(engines)
    await compute(failing, group("poison"))  # no engine can compute it
    await compute(failing, group("a"))
    assert caplog.messages == []
    engines[0].error = InferenceError("out of memory")
    calls = engines[0].calls
    for _ in range(20):
        await compute(failing, group("a"))
    assert caplog.messages == ["m0 fails, and its fallback answers: out of memory"]
    assert engines[0].calls == calls + 5  # then it is left alone
    for _ in range(20):
        CLOCK.now_s += 0.5
        await compute(failing, group("a"))
    assert engines[0].calls == calls + 15
    assert len(caplog.messages) == 1
    engines[0].error = None
    CLOCK.now_s += 1
    for _ in range(20):
        await compute(failing, group("a"))
    assert caplog.messages[1:] == ["m0 answers again."]
    assert engines[0].calls == calls + 35


async def test_the_last_engine_is_always_tried(engines: list[FakeEngine]) -> None:
    for engine in engines:
        engine.error = InferenceError("no")
    failing = chain(engines)
    for _ in range(20):
        await compute(failing, group("a"))
    engines[1].error = None
    (result,) = await compute(failing, group("a"))
    assert is_vector(result, "a")


async def test_what_a_fallback_computes_is_cached_and_joined_like_all_else(
    engines: list[FakeEngine],
) -> None:
    engines[0].error = Unavailable("no")
    engines[1].delay_s = 0.01
    coalescer = GroupCoalescer(chain(engines), max_in_flight_calls=4)
    lookup = Lookup("space", CODECS, MemoryCache(1 << 20), coalescer)
    await asyncio.gather(*(lookup.run(TextGroup(("a", f"{i}"))) for i in range(4)))
    await lookup.run(TextGroup(("a",)))
    computed = [str(text) for group in engines[1].groups for text in group.texts]
    assert sorted(computed) == ["0", "1", "2", "3", "a"]


async def test_calls_without_a_cache_fall_back_too(engines: list[FakeEngine]) -> None:
    calls = FallbackChain(links(engines), engines)

    def tokenize(engine: FakeEngine) -> Awaitable[object]:
        return engine.tokenize(("a",), False)

    engines[0].error = Unavailable("no")
    assert await calls.call(tokenize) == await engines[1].tokenize(("a",), False)
    engines[1].error = InferenceError("no")
    with pytest.raises(Unavailable):
        await calls.call(tokenize)
    for i in (1, 0):
        CLOCK.now_s += 1
        engines[i].error = InvalidRequest(f"an id, {i}")
        with pytest.raises(InvalidRequest, match=f"an id, {i}"):
            await calls.call(tokenize)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
