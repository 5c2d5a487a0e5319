import logging

import psutil
import pytest

from serve_app.scheduler.startup_timer import StartupTimer


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_steps_add_up_to_the_time_until_the_replica_is_ready(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    timer = StartupTimer(clock)
    for duration_s in (2.0, 3.0):  # of two models
        with timer.step("load"):
            clock.now_s += duration_s
    clock.now_s += 1
    assert (timer.steps, timer.total_s) == ({}, 0)
    with caplog.at_level(logging.INFO):
        timer.ready()
    assert timer.steps["load"] == 5
    assert timer.steps["other"] == 1
    assert timer.total_s == pytest.approx(timer.steps["process"] + 6)
    assert "load 5.00" in caplog.text
    clock.now_s += 100
    assert timer.total_s == pytest.approx(timer.steps["process"] + 6)


def test_a_model_that_is_loaded_later_does_not_count(clock: Clock) -> None:
    timer = StartupTimer(clock)
    timer.ready()
    with timer.step("load"):
        clock.now_s += 5
    assert "load" not in timer.steps


def test_a_process_that_waited_for_a_replica_does_not_count_as_a_long_start(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    timer = StartupTimer(clock)
    timer.ready()
    times = psutil.Process().cpu_times()
    assert timer.steps["process"] <= 2 * (times.user + times.system)
