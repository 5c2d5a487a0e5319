import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from serve_app.deployments import retrying_call
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import InferenceError, Overloaded, Unavailable


class FakeHandle:
    """Plays what a Serve handle gives back, one thing for each call."""

    def __init__(self, *plays: object) -> None:
        self.plays = list(plays)
        self.options_given: dict[str, Any] = {}
        self.arguments: list[object] = []

    def options(self, **options: Any) -> "FakeHandle":
        self.options_given = options
        return self

    async def remote(self, *arguments: object) -> object:
        self.arguments.append(arguments)
        play = self.plays.pop(0)
        if isinstance(play, Exception) and not isinstance(play, InferenceError):
            raise play
        return play


def died() -> Exception:
    return ActorDiedError()


def gone() -> Exception:
    return ActorUnavailableError("Actor is unavailable.", b"\0" * 16)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying_call, "_BACKOFF_S", 0)


def method(handle: FakeHandle) -> RetryingCall:
    return RetryingCall(handle, "embed")  # type: ignore[arg-type]


async def test_a_reply_is_handed_on() -> None:
    handle = FakeHandle("reply")
    assert await method(handle)("argument") == "reply"
    assert handle.arguments == [("argument",)]
    assert handle.options_given["method_name"] == "embed"


@pytest.mark.parametrize("death", [died, gone], ids=["died", "unavailable"])
async def test_a_call_whose_replica_dies_goes_to_another(death: Any) -> None:
    handle = FakeHandle(death(), death(), "reply")
    assert await method(handle)("argument") == "reply"
    assert handle.arguments == [("argument",)] * 3


async def test_a_request_that_kills_its_replicas_does_not_kill_them_all() -> None:
    handle = FakeHandle(*[died() for _ in range(10)])
    with pytest.raises(Unavailable):
        await method(handle)("argument")
    assert len(handle.arguments) == 3


async def test_an_error_of_the_service_is_a_value_on_the_way_and_raised_here() -> None:
    handle = FakeHandle(InferenceError("no"))
    with pytest.raises(InferenceError, match="no"):
        await method(handle)("argument")
    assert len(handle.arguments) == 1


async def test_a_call_that_nobody_waits_for_is_cancelled_there_too() -> None:
    class ParsedRequest:
        cancelled = False

        def __await__(self) -> Generator[Any, None, None]:
            yield from asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            self.cancelled = True

    class Handle(FakeHandle):
        def remote(self, *arguments: object) -> Any:
            return call

    call = ParsedRequest()
    task = asyncio.ensure_future(method(Handle())("argument"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert call.cancelled


async def test_a_full_queue_is_overload() -> None:
    with pytest.raises(Overloaded):
        await method(FakeHandle(BackPressureError(10, 10)))("argument")
