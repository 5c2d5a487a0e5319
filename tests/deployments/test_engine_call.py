import asyncio
from typing import Any

import pytest

from serve_app.deployments.engine_call import EngineCall
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.errors import Unavailable


class FakeHandle:
    """A Serve handle whose replicas answer callers of their own engine only."""

    def __init__(self, *engines: str) -> None:
        self._engines = list(engines)

    def options(self, **options: Any) -> "FakeHandle":
        return self

    def remote(self, engine_id: str, argument: str) -> asyncio.Future[str | None]:
        return asyncio.ensure_future(self._reply(engine_id, argument))

    async def _reply(self, engine_id: str, argument: str) -> str | None:
        own = self._engines.pop(0) if len(self._engines) > 1 else self._engines[0]
        return f"{argument} in {own}" if engine_id == own else None


def call(handle: FakeHandle, *, arrival_s: float = 30, departure_s: float = 30) -> EngineCall:
    return EngineCall(
        RetryingCall(handle, "embed"),  # type: ignore[arg-type]
        "new",
        retry_delay_s=0,
        arrival_timeout_s=arrival_s,
        departure_timeout_s=departure_s,
    )


async def test_a_call_waits_for_a_replica_with_its_engine() -> None:
    assert await call(FakeHandle("new"))("text") == "text in new"
    assert await call(FakeHandle("old", "old", "new"), departure_s=0)("text") == "text in new"


async def test_a_call_does_not_wait_for_ever() -> None:
    with pytest.raises(Unavailable, match="changes its model") as caught:
        await call(FakeHandle("old"), arrival_s=0)("text")
    assert caught.value.retry_after_s == 1


async def test_a_call_whose_engine_is_gone_is_refused_soon() -> None:
    present = call(FakeHandle("new", "old"), arrival_s=3600, departure_s=0)
    assert await present("text") == "text in new"
    async with asyncio.timeout(60):
        with pytest.raises(Unavailable, match="changes its model") as caught:
            await present("text")
    assert caught.value.retry_after_s == 1
