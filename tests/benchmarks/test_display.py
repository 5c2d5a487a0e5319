import pytest

from benchmarks.display import Display, format_metrics
from benchmarks.load import Progress


def test_finished_steps_are_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(100) as display:
        display.start_step("a run")
        display.update(Progress(1.0, 10.0, 1.0, 2.0, 0, 3))
        display.finish_step(25, "a run: 10 texts/s")
        display.finish_step(75, "another")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(" 25%")
    assert first.endswith("left  a run: 10 texts/s")
    assert second.startswith("100%  0:00 left")


def test_the_remaining_time_is_corrected_by_finished_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.display.time.monotonic", lambda: now)
    display = Display(1000)
    now = 10.0
    assert display.remaining_s() == 990
    now = 400.0
    display.finish_step(200, "")  # twice as slow as planned
    assert 800 < display.remaining_s() < 1600
    before = display.remaining_s()
    now = 410.0
    assert display.remaining_s() == before - 10
    now = 2000.0
    display.finish_step(800, "")
    assert display.remaining_s() == 0


def test_metrics_on_one_line() -> None:
    metrics = {"texts_per_s": 12.3, "p50_ms": 1.04, "p99_ms": 20.0, "failed": {"429": 2, "503": 1}}
    assert format_metrics(metrics) == "12 texts/s  p50 1.0 ms  p99 20.0 ms  3 failed"
    assert format_metrics({"texts_per_s": 12.3, "failed": {}}) == "12 texts/s"
