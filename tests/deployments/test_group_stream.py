"""Results come one by one, and only groups without one are sent again."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError

from serve_app.cache.coalescer import Deliver
from serve_app.deployments.deliveries import Part, collect, deliveries
from serve_app.deployments.group_stream import GroupStream
from serve_app.deployments.movable_calls import MOVABLE_CALLS
from serve_app.errors import InferenceError, Unavailable
from serve_app.types import EncodedVectors, TextGroup

GROUPS = tuple(TextGroup((text,)) for text in "abc")


def result(text: str) -> EncodedVectors:
    value: Any = np.frombuffer(text.encode(), dtype=np.uint8)
    return value  # type: ignore[no-any-return]


class Stream:
    """Ray's response of a streaming call."""

    def __init__(self, steps: list[Any]) -> None:
        self._steps = steps
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[Part]:
        for step in self._steps:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception) and not isinstance(step, InferenceError):
                raise step
            else:
                yield step

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A Serve handle that notes which groups it is asked for, and streams what it is told."""

    def __init__(self, *streams: list[Any], reply: Any = None) -> None:
        self._streams = [*streams]
        self._reply = reply
        self.responses: list[Stream] = []
        self.sent: list[tuple[str, str]] = []
        self.groups: list[tuple[TextGroup, ...]] = []

    def options(self, **options: Any) -> Any:
        return _Method(self, options["method_name"])

    def call(self, method: str, groups: tuple[TextGroup, ...]) -> Any:
        self.groups.append(groups)
        self.sent.append((method, "".join(str(group.texts[0]) for group in groups)))
        if method == "run":
            return asyncio.ensure_future(asyncio.sleep(0, self._reply))
        self.responses.append(Stream(self._streams.pop(0)))
        return self.responses[-1]


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle, self._name = handle, name

    def options(self, **options: Any) -> "_Method":
        return _Method(self._handle, options["method_name"])

    def remote(self, engine_id: str, groups: tuple[TextGroup, ...]) -> Any:
        return self._handle.call(self._name, groups)


class Results(dict[int, Any]):
    """What was delivered, by the index of the group in the whole call."""

    def deliver(self, index: int, value: Any) -> None:
        assert index not in self, "delivered twice"
        self[index] = value if isinstance(value, Exception) else bytes(value).decode()


def stream(handle: Handle) -> GroupStream:
    return GroupStream(handle)  # type: ignore[arg-type]


async def test_a_result_is_delivered_before_the_others_are_known() -> None:
    rest, results = asyncio.Event(), Results()
    handle = Handle([[(1, result("b"))], rest, [(0, result("a")), (2, result("c"))]])
    call = asyncio.create_task(stream(handle)("engine", GROUPS, results.deliver))
    await asyncio.sleep(0.01)
    assert results == {1: "b"}
    rest.set()
    assert await call is True
    assert results == {0: "a", 1: "b", 2: "c"}
    assert handle.sent == [("run_each", "abc")]


async def test_a_lone_group_gets_a_reply_without_a_stream() -> None:
    results, handle = Results(), Handle(reply=[result("a")])
    assert await stream(handle)("engine", GROUPS[:1], results.deliver) is True
    assert results == {0: "a"}
    assert handle.sent == [("run", "a")]


async def test_only_groups_without_a_result_are_sent_again_when_a_replica_dies() -> None:
    died = ActorUnavailableError("gone", b"\0" * 16)
    handle = Handle(
        [[(1, result("b"))], died],
        [[(1, result("c"))], died],
        reply=[result("a")],
    )
    results = Results()
    assert await stream(handle)("engine", GROUPS, results.deliver) is True
    assert results == {0: "a", 1: "b", 2: "c"}
    assert handle.sent == [("run_each", "abc"), ("run_each", "ac"), ("run", "a")]
    assert [group.is_resent for group in handle.groups[1]] == [True, True]


async def test_a_replica_that_dies_after_the_last_result_changes_nothing() -> None:
    died = ActorUnavailableError("gone", b"\0" * 16)
    everything = [(i, result(text)) for i, text in enumerate("abc")]
    handle, results = Handle([everything, died], []), Results()
    assert await stream(handle)("engine", GROUPS, results.deliver) is True
    assert results == {0: "a", 1: "b", 2: "c"}


async def test_groups_without_a_result_move_with_their_call() -> None:
    results = Results()
    handle = Handle([[(0, result("a"))], asyncio.Event()], [[(0, result("b")), (1, result("c"))]])
    call = asyncio.create_task(stream(handle)("engine", GROUPS, results.deliver))
    await asyncio.sleep(0.01)
    MOVABLE_CALLS.identify(handle.groups[0], "1")
    assert MOVABLE_CALLS.move("1")
    assert await call is True
    assert results == {0: "a", 1: "b", 2: "c"}
    assert handle.sent == [("run_each", "abc"), ("run_each", "bc")]
    assert handle.responses[0].is_cancelled


@pytest.mark.parametrize("groups", [GROUPS[:1], GROUPS])
async def test_a_replica_without_the_engine_delivers_nothing(groups: Any) -> None:
    results = Results()
    assert await stream(Handle([None]))("engine", groups, results.deliver) is None
    assert results == {}


async def test_an_error_ends_the_call_after_the_results_before_it() -> None:
    results, handle = Results(), Handle([[(0, result("a"))], InferenceError("no")])
    with pytest.raises(InferenceError, match="no"):
        await stream(handle)("engine", GROUPS, results.deliver)
    assert results == {0: "a"}


async def test_a_caller_that_gives_up_cancels_the_call() -> None:
    handle = Handle([asyncio.Event()])
    call = asyncio.create_task(stream(handle)("engine", GROUPS, Results().deliver))
    await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert handle.responses[0].is_cancelled
    assert len(handle.sent) == 1


async def test_results_that_have_come_meanwhile_are_one_part() -> None:
    gate = asyncio.Event()

    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        deliver(2, result("c"))
        await gate.wait()
        deliver(0, result("a"))
        deliver(1, result("b"))

    parts = deliveries(send, GROUPS)
    assert _positions(await anext(parts)) == [2]
    gate.set()
    assert _positions(await anext(parts)) == [0, 1]
    assert [part async for part in parts] == []


async def test_an_error_of_the_service_is_the_last_part() -> None:
    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        deliver(0, result("a"))
        raise Unavailable("no model")

    first, last = [part async for part in deliveries(send, GROUPS)]
    assert _positions(first) == [0]
    assert isinstance(last, Unavailable)


async def test_a_caller_that_is_gone_ends_the_computation() -> None:
    ended = asyncio.Event()

    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        try:
            deliver(0, result("a"))
            await asyncio.Event().wait()
        finally:
            ended.set()

    parts = deliveries(send, GROUPS)
    await anext(parts)
    await parts.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(20):
        await ended.wait()


async def test_a_group_without_a_result_is_an_error_in_a_reply() -> None:
    async def send(groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        deliver(1, result("b"))

    first, second, third = await collect(send, GROUPS)
    assert isinstance(first, Unavailable)
    assert isinstance(third, Unavailable)
    assert bytes(second).decode() == "b"  # type: ignore[arg-type]


def _positions(part: Part) -> list[int]:
    assert isinstance(part, list)
    return [position for position, _ in part]
