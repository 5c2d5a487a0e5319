import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.wake_up import WakeUp
from serve_app.errors import Unavailable
from serve_app.types import ReplicaCount


class Deployment:
    """A deployment whose replica may start later."""

    def __init__(self) -> None:
        self.running = 0
        self.started = asyncio.Event()
        self.knows = True
        self.counted = 0

    def start(self) -> None:
        self.running = 1
        self.started.set()

    async def count(self) -> ReplicaCount | None:
        self.counted += 1
        return ReplicaCount(self.running, may_be_zero=True) if self.knows else None

    async def call(self) -> str:
        await self.started.wait()
        return "reply"

    def options(self, **options: Any) -> "Deployment":
        return self

    def remote(self, *arguments: object) -> Awaitable[str]:
        return asyncio.ensure_future(self.call())


@pytest.fixture
def deployment() -> Deployment:
    return Deployment()


def wake_up(
    deployment: Deployment, timeout_s: float, clock: Callable[[], float] | None = None
) -> WakeUp:
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    return WakeUp(
        "Embedder", deployment.count, timeout_s=timeout_s, check_interval_s=0.01, **options
    )


async def test_calls_wait_together_until_a_replica_has_started(deployment: Deployment) -> None:
    limit = wake_up(deployment, timeout_s=60)
    calls = [asyncio.create_task(limit.wait(deployment.call())) for _ in range(50)]
    while not deployment.counted:
        await asyncio.sleep(0.01)
    deployment.start()
    assert await asyncio.gather(*calls) == ["reply"] * 50


async def test_without_a_replica_all_calls_fail_once_the_time_is_over(
    deployment: Deployment,
) -> None:
    limit = wake_up(deployment, timeout_s=0.1)
    calls = [asyncio.create_task(limit.wait(deployment.call())) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    (error,) = {str(result) for result in results}
    assert "Embedder" in error


async def test_later_calls_fail_soon_while_no_replica_starts(deployment: Deployment) -> None:
    now_s = 0.0
    limit = wake_up(deployment, timeout_s=60, clock=lambda: now_s)
    first = asyncio.create_task(limit.wait(deployment.call()))
    while deployment.counted < 2:
        now_s += 1
        await asyncio.sleep(0.01)
    second = asyncio.create_task(limit.wait(deployment.call()))
    await asyncio.sleep(0)
    now_s += 60
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    # Nobody waits any more, so the next call starts a new wait.
    third = asyncio.create_task(limit.wait(deployment.call()))
    now_s += 59
    deployment.start()
    assert await third == "reply"


async def test_retry_after_is_how_long_the_last_start_took(deployment: Deployment) -> None:
    now_s = 0.0
    limit = wake_up(deployment, timeout_s=1000, clock=lambda: now_s)
    call = asyncio.create_task(limit.wait(deployment.call()))
    while not deployment.counted:
        now_s += 0.5
        await asyncio.sleep(0.01)
    now_s, deployment.running = now_s + 42, 1
    counted = deployment.counted
    while deployment.counted == counted:
        await asyncio.sleep(0.01)
    deployment.start()
    await call
    assert 42 <= limit.retry_after_s <= 60


async def test_a_slow_call_of_a_live_replica_is_not_limited(deployment: Deployment) -> None:
    limit = wake_up(deployment, timeout_s=0.02)
    deployment.running = 1
    call = asyncio.create_task(limit.wait(deployment.call()))
    while deployment.counted < 5:
        await asyncio.sleep(0.01)
    deployment.start()
    assert await call == "reply"


async def test_while_the_replicas_are_unknown_calls_wait(deployment: Deployment) -> None:
    limit = wake_up(deployment, timeout_s=0.02)
    deployment.knows = False
    call = asyncio.create_task(limit.wait(deployment.call()))
    while deployment.counted < 5:
        await asyncio.sleep(0.01)
    deployment.start()
    assert await call == "reply"


async def test_errors_and_time_limits_of_the_call_itself_pass(deployment: Deployment) -> None:
    async def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await wake_up(deployment, timeout_s=60).wait(fail())


async def test_a_call_over_a_handle_is_limited(deployment: Deployment) -> None:
    call = RetryingCall(
        deployment,  # type: ignore[arg-type]
        "run",
        wake_up=wake_up(deployment, timeout_s=0.05),
    )
    with pytest.raises(Unavailable) as caught:
        await call("argument")
    assert caught.value.retry_after_s
