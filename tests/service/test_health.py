import asyncio

import pytest

from serve_app.errors import Unavailable
from serve_app.service.health import HealthProbe, HealthReport, service_report


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """An engine that computes one vector per call."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.released = asyncio.Event()
        self.released.set()

    async def __call__(self) -> None:
        self.calls += 1
        await self.released.wait()
        if self.error:
            raise self.error


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def health(engine: Engine, clock: Clock) -> HealthProbe:
    return HealthProbe(engine, max_age_s=10, timeout_s=0.05, clock=clock)


async def test_recent_work_needs_no_probe(
    health: HealthProbe, engine: Engine, clock: Clock
) -> None:
    health.record_success()
    clock.now = 9
    report = await health.check()
    assert (report.healthy, report.age_s, engine.calls) == (True, 9, 0)


async def test_without_recent_work_a_check_probes(
    health: HealthProbe, engine: Engine, clock: Clock
) -> None:
    assert (await health.check()).healthy
    clock.now = 9
    assert (await health.check()).healthy
    assert engine.calls == 1
    clock.now = 11
    assert (await health.check()).healthy
    assert engine.calls == 2


async def test_a_failing_engine_is_unhealthy_with_its_error(
    health: HealthProbe, engine: Engine
) -> None:
    engine.error = Unavailable("All replicas are gone.")
    report = await health.check()
    assert (report.healthy, report.reason) == (False, "All replicas are gone.")


async def test_a_hanging_engine_is_unhealthy_after_the_timeout(
    health: HealthProbe, engine: Engine
) -> None:
    engine.released.clear()
    report = await health.check()
    assert (report.healthy, report.reason) == (
        False,
        "The engine returned no vector within 0.05 s.",
    )


async def test_a_later_success_makes_it_healthy_again(health: HealthProbe, engine: Engine) -> None:
    engine.error = Unavailable("Not yet.")
    assert not (await health.check()).healthy
    engine.error = None
    assert (await health.check()).healthy


async def test_concurrent_checks_share_a_probe_that_survives_a_cancellation(
    health: HealthProbe, engine: Engine
) -> None:
    engine.released.clear()
    checks = [asyncio.create_task(health.check()) for _ in range(5)]
    await asyncio.sleep(0)
    checks[0].cancel()
    await asyncio.sleep(0)
    engine.released.set()
    reports = await asyncio.gather(*checks[1:])
    assert all(report.healthy for report in reports)
    assert engine.calls == 1


async def test_a_model_that_is_loaded_on_demand_is_not_probed() -> None:
    probe = HealthProbe(None, max_age_s=10, timeout_s=1)
    assert await probe.check() == HealthReport(True, None, None, is_proven=False)
    probe.record_success()
    assert (await probe.check()).is_proven


def test_a_model_that_proves_nothing_does_not_make_a_service_healthy() -> None:
    ill = HealthReport(False, None, "gone")
    idle = HealthReport(True, None, None, is_proven=False)
    used = HealthReport(True, 1.0, None)
    assert service_report([ill, idle]) is ill
    assert service_report([ill, idle, used]) is used
    assert service_report([idle]) is idle


async def test_a_probe_that_computes_nothing_proves_failures_only(
    engine: Engine, clock: Clock
) -> None:
    health = HealthProbe(engine, max_age_s=10, timeout_s=0.05, computes=False, clock=clock)
    assert await health.check() == HealthReport(True, None, None, is_proven=False)
    health.record_success()
    assert await health.check() == HealthReport(True, 0, None, is_proven=True)
    engine.error = Unavailable("The breaker is open.")
    assert await health.check() == HealthReport(False, 0, "The breaker is open.")
