import asyncio
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from serve_app.breaker import Breaker
from serve_app.valkey.client import Client
from serve_app.valkey.guarded_client import GuardedClient

LIMIT_S = 30


class Probe:
    """A probe that fails with `error` unless it is None."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self, client: Client) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def guarded(probe: Probe, events: list[str]) -> GuardedClient:
    return GuardedClient(
        Redis(),
        timeout_s=0.01,
        probe=probe,
        on_down=lambda reason: events.append(f"down: {reason}"),
        on_up=lambda: events.append("up"),
        on_failure=lambda error: events.append(type(error).__name__),
        breaker=Breaker(max_failures=2, probe_every_s=0.01),
    )


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_consecutive_failures_open_it_once(guarded: GuardedClient, events: list[str]) -> None:
    guarded.record_failure(TimeoutError())
    assert (guarded.state, guarded.down_reason) == ("up", None)
    guarded.record_failure(TimeoutError())
    assert (guarded.state, guarded.down_reason) == ("down", "no answer in time")
    guarded.record_failure(ConnectionRefusedError(111, "Connection refused"))  # a late result
    assert guarded.down_reason == "no connection (Connection refused)"
    assert events == [
        "TimeoutError",
        "TimeoutError",
        "down: no answer in time",
        "ConnectionRefusedError",
    ]


async def test_successes_between_failures_keep_it_closed(guarded: GuardedClient) -> None:
    for _ in range(3):
        guarded.record_failure(TimeoutError())
        guarded.record_success()
    assert guarded.state == "up"


async def test_a_failed_probe_opens_it_and_a_successful_one_closes_it(
    guarded: GuardedClient, probe: Probe, events: list[str]
) -> None:
    probe.error = TimeoutError()
    for _ in range(2):
        await guarded.probe()
    assert guarded.state == "down"
    probe.error = None
    for _ in range(2):
        await guarded.probe()
    assert (guarded.state, guarded.down_reason) == ("up", None)
    assert events == ["TimeoutError", "down: no answer in time", "TimeoutError", "up"]


async def test_a_probe_that_hangs_times_out() -> None:
    async def hang(client: Client) -> None:
        await asyncio.Event().wait()

    hanging = GuardedClient(
        Redis(), timeout_s=0.01, probe=hang, on_down=lambda reason: None, on_up=lambda: None
    )
    async with asyncio.timeout(LIMIT_S):
        await hanging.probe()
    assert hanging.down_reason == "no answer in time"


async def test_it_probes_in_the_background_until_it_is_closed(
    guarded: GuardedClient, probe: Probe
) -> None:
    probe.error = TimeoutError()
    guarded.start()
    await wait_until(lambda: guarded.state == "down")
    probe.error = None
    await wait_until(lambda: guarded.state == "up")
    guarded.record_failure(TimeoutError())
    calls = probe.calls
    await wait_until(lambda: probe.calls > calls)
    await guarded.close()
    guarded.record_failure(TimeoutError())
    calls = probe.calls
    await asyncio.sleep(0.3)
    assert probe.calls == calls
