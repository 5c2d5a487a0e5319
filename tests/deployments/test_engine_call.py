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

    async def remote(self, engine_id: str, argument: str) -> str | None:
        own = self._engines.pop(0) if len(self._engines) > 1 else self._engines[0]
        return f"{argument} in {own}" if engine_id == own else None


def call(handle: FakeHandle, timeout_s: float = 30) -> EngineCall:
    return EngineCall(
        RetryingCall(handle, "embed"),  # type: ignore[arg-type]
        "new",
        retry_delay_s=0,
        timeout_s=timeout_s,
    )


async def test_a_call_waits_for_a_replica_with_its_engine() -> None:
    assert await call(FakeHandle("new"))("text") == "text in new"
    assert await call(FakeHandle("old", "old", "new"))("text") == "text in new"


async def test_a_call_does_not_wait_for_ever() -> None:
    with pytest.raises(Unavailable, match="changes its model"):
        await call(FakeHandle("old"), timeout_s=0)("text")
