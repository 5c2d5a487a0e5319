import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from serve_app.deployments.movable_calls import MOVABLE_CALLS
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import InferenceError, Overloaded, Unavailable
from serve_app.types import TextGroup


class FakeHandle:
    """A Serve handle that returns or raises one outcome per call."""

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.handle_options: dict[str, Any] = {}
        self.calls: list[object] = []

    def options(self, **options: Any) -> "FakeHandle":
        self.handle_options = options
        return self

    def remote(self, *arguments: object) -> asyncio.Future[object]:
        return asyncio.ensure_future(self._reply(arguments))

    async def _reply(self, arguments: object) -> object:
        self.calls.append(arguments)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, asyncio.Event):
            await outcome.wait()
        if isinstance(outcome, Exception) and not isinstance(outcome, InferenceError):
            raise outcome
        return outcome


def actor_died() -> Exception:
    return ActorDiedError()


def actor_unavailable() -> Exception:
    return ActorUnavailableError("Actor is unavailable.", b"\0" * 16)


def retrying_call(handle: FakeHandle) -> RetryingCall:
    return RetryingCall(handle, "embed", backoff_s=0)  # type: ignore[arg-type]


async def test_a_call_returns_the_reply() -> None:
    handle = FakeHandle("reply")
    assert await retrying_call(handle)("argument") == "reply"
    assert handle.calls == [("argument",)]
    assert handle.handle_options["method_name"] == "embed"


@pytest.mark.parametrize("error", [actor_died, actor_unavailable], ids=["died", "unavailable"])
async def test_a_call_whose_replica_dies_is_retried(error: Any) -> None:
    handle = FakeHandle(error(), error(), "reply")
    assert await retrying_call(handle)("argument") == "reply"
    assert handle.calls == [("argument",)] * 3


async def test_the_number_of_attempts_is_bounded() -> None:
    handle = FakeHandle(*[actor_died() for _ in range(10)])
    with pytest.raises(Unavailable):
        await retrying_call(handle)("argument")
    assert len(handle.calls) == 3


async def test_an_error_that_the_method_returns_is_raised() -> None:
    handle = FakeHandle(InferenceError("no"))
    with pytest.raises(InferenceError, match="no"):
        await retrying_call(handle)("argument")
    assert len(handle.calls) == 1


async def test_cancelling_a_call_cancels_the_remote_call() -> None:
    class RemoteCall:
        cancelled = False

        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            self.cancelled = True

    class Handle(FakeHandle):
        def remote(self, *arguments: object) -> Any:
            return call

    call = RemoteCall()
    task = asyncio.ensure_future(retrying_call(Handle())("argument"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert call.cancelled


async def test_backpressure_raises_overloaded() -> None:
    with pytest.raises(Overloaded):
        await retrying_call(FakeHandle(BackPressureError(10, 10)))("argument")


GROUPS = (TextGroup(("a text",)),)


def sent_groups(arguments: Any) -> tuple[TextGroup, ...]:
    groups: tuple[TextGroup, ...] = arguments[1]
    return groups


async def test_texts_of_a_replica_that_died_are_no_new_arrivals() -> None:
    handle = FakeHandle(actor_died(), "reply")
    assert await retrying_call(handle)("engine", GROUPS) == "reply"
    assert [sent_groups(call)[0].is_resent for call in handle.calls] == [False, True]


async def test_a_call_that_the_router_moves_is_sent_again() -> None:
    handle = FakeHandle(asyncio.Event(), asyncio.Event(), "reply")
    task = asyncio.ensure_future(retrying_call(handle)("engine", GROUPS))
    for attempt in range(2):
        await asyncio.sleep(0.01)
        MOVABLE_CALLS.identify(sent_groups(handle.calls[-1]), f"{attempt}")
        assert MOVABLE_CALLS.move(f"{attempt}")
    assert await task == "reply"
    sent = [sent_groups(call)[0] for call in handle.calls]
    assert [group.texts for group in sent] == [("a text",)] * 3
    assert [group.is_resent for group in sent] == [False, True, True]
    assert not MOVABLE_CALLS.move("1")  # it has ended


async def test_a_call_that_its_caller_gives_up_is_not_sent_again() -> None:
    handle = FakeHandle(asyncio.Event(), "reply")
    task = asyncio.ensure_future(retrying_call(handle)("engine", GROUPS))
    await asyncio.sleep(0.01)
    MOVABLE_CALLS.identify(GROUPS, "1")
    MOVABLE_CALLS.move("1")
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert len(handle.calls) == 1


async def test_a_call_that_runs_no_model_is_not_movable() -> None:
    handle = FakeHandle(asyncio.Event())
    task = asyncio.ensure_future(retrying_call(handle)("engine", ()))
    await asyncio.sleep(0.01)
    MOVABLE_CALLS.identify((), "1")
    assert not MOVABLE_CALLS.move("1")
    task.cancel()
    await asyncio.wait([task])
