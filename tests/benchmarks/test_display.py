import pytest

from benchmarks.display import Display, figures_line
from benchmarks.load import Pulse


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(100) as display:
        display.doing("a run")
        display.pulse(Pulse(1.0, 10.0, 1.0, 2.0, 0, 3))
        display.done(25, "a run: 10 texts/s")
        display.done(75, "another")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(" 25%")
    assert first.endswith("left  a run: 10 texts/s")
    assert second.startswith("100%  0:00 left")


def test_the_time_left_begins_with_the_plan_and_learns_from_what_was_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("benchmarks.display.time.monotonic", lambda: now)
    display = Display(1000)
    now = 10.0
    assert display.left_s() == 990
    now = 400.0
    display.done(200, "")  # twice as slow as planned
    assert 800 < display.left_s() < 1600
    before = display.left_s()
    now = 410.0
    assert display.left_s() == before - 10
    now = 2000.0
    display.done(800, "")
    assert display.left_s() == 0


def test_a_run_in_a_few_words() -> None:
    figures = {"texts_per_s": 12.3, "p50_ms": 1.04, "p99_ms": 20.0, "failed": {"429": 2, "503": 1}}
    assert figures_line(figures) == "12 texts/s  p50 1.0 ms  p99 20.0 ms  3 failed"
    assert figures_line({"texts_per_s": 12.3, "failed": {}}) == "12 texts/s"
