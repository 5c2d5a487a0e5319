import asyncio

import pytest

from serve_app.errors import Unavailable
from serve_app.service.health import HealthProbe


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Probe:
    """An engine that is tried for one vector."""

    def __init__(self) -> None:
        self.tries = 0
        self.error: Exception | None = None
        self.opened = asyncio.Event()
        self.opened.set()

    async def __call__(self) -> None:
        self.tries += 1
        await self.opened.wait()
        if self.error:
            raise self.error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def health(probe: Probe, clock: Clock) -> HealthProbe:
    return HealthProbe(probe, max_age_s=10, timeout_s=0.05, clock=clock)


async def test_traffic_is_proof_enough(health: HealthProbe, probe: Probe, clock: Clock) -> None:
    health.record_success()
    clock.now = 9
    report = await health.check()
    assert (report.healthy, report.age_s, probe.tries) == (True, 9, 0)


async def test_without_traffic_it_tries(health: HealthProbe, probe: Probe, clock: Clock) -> None:
    assert (await health.check()).healthy
    clock.now = 9
    assert (await health.check()).healthy
    assert probe.tries == 1
    clock.now = 11
    assert (await health.check()).healthy
    assert probe.tries == 2


async def test_a_dead_engine_is_told_with_its_reason(health: HealthProbe, probe: Probe) -> None:
    probe.error = Unavailable("All replicas are gone.")
    report = await health.check()
    assert (report.healthy, report.reason) == (False, "All replicas are gone.")


async def test_a_hanging_engine_is_told_in_time(health: HealthProbe, probe: Probe) -> None:
    probe.opened.clear()
    report = await health.check()
    assert (report.healthy, report.reason) == (False, "No vector came within 0.05 s.")


async def test_it_recovers(health: HealthProbe, probe: Probe) -> None:
    probe.error = Unavailable("Not yet.")
    assert not (await health.check()).healthy
    probe.error = None
    assert (await health.check()).healthy


async def test_many_checks_share_a_try_and_none_ends_it_by_leaving(
    health: HealthProbe, probe: Probe
) -> None:
    probe.opened.clear()
    checks = [asyncio.create_task(health.check()) for _ in range(5)]
    await asyncio.sleep(0)
    checks[0].cancel()
    await asyncio.sleep(0)
    probe.opened.set()
    reports = await asyncio.gather(*checks[1:])
    assert all(report.healthy for report in reports)
    assert probe.tries == 1
