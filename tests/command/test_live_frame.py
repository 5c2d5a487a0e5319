"""A frame of the live view, from snapshots: it fits its window and says what is known."""

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from serve_app.command.live_frame import frame
from serve_app.command.live_history import LiveHistory
from serve_app.command.live_stream import Disconnected
from serve_app.command.sparkline import sparkline
from serve_app.live.snapshot import ReplicaLive, Snapshot
from serve_app.live.summary import summarize
from tests.live.samples import fleet, replica

URL = "http://embed.example:8000"
SIZES = [(80, 24), (140, 50)]
REASON = "12,000 tokens/s arrive, of which two replicas compute 8,000, and more are expected"


def make_snapshot(
    per_s: float | None = 120.0, *, models: int = 3, replicas: int = 4, keys: int = 2
) -> Snapshot:
    """Returns a snapshot with tables of these lengths."""
    snapshot = copy.deepcopy(summarize(None, fleet(replica()), [], topology="separate", unix=1.0))
    snapshot["requests"] |= {"per_s": per_s, "errors_per_s": 0.0, "p50_ms": 3.1, "p99_ms": 22.5}
    snapshot["lanes"]["bulk"] |= {"queued_tokens": 52_000.0, "oldest_s": 1.5, "p99_ms": 900.0}
    snapshot["models"] = [
        {
            "name": f"organization/model-{i}",
            "task": "embed",
            "state": "ready",
            "engine": "openvino",
            "precision": "bf16",
            "requests_per_s": float(i),
            "queued_tokens": (20.0, 30.0, 10.0)[i % 3],
        }
        for i in range(models)
    ]
    snapshot["deployments"] = [
        {
            "name": "Embedder",
            "replicas": 2,
            "target": 3,
            "decided_by": "arrivals",
            "reason": REASON,
            "busy_share": 0.93,
        }
    ]
    row: ReplicaLive = snapshot["replicas"][0]
    snapshot["replicas"] = [{**row, "id": f"replica{i}"} for i in range(replicas)]
    snapshot["keys"] = [
        {"name": f"team-{i}", "tokens_per_s": 5.0, "limit": 100_000, "remaining": 9e4}
        for i in range(keys)
    ]
    return snapshot


def render(history: LiveHistory, width: int, height: int | None) -> list[str]:
    """Returns the lines of a frame, as a terminal of this width prints them."""
    console = Console(file=io.StringIO(), width=width, height=height or 25, color_system=None)
    console.print(frame(history, URL, width, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def history_of(*snapshots: Snapshot) -> LiveHistory:
    history = LiveHistory()
    for snapshot in snapshots:
        history.receive(snapshot)
    return history


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 3, 40])
def test_a_frame_fills_its_window_and_no_more(size: tuple[int, int], rows: int) -> None:
    width, height = size
    history = history_of(make_snapshot(models=rows, replicas=rows, keys=rows))
    lines = render(history, width, height)
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")
    shown = sum(f"organization/model-{i}" in line for i in range(rows) for line in lines)
    left_out = [line for line in lines if line.startswith("… ")]
    assert shown == rows or left_out
    assert any("Embedder" in line for line in lines)


def test_a_larger_window_shows_more() -> None:
    history = history_of(*(make_snapshot(float(i), models=12) for i in range(90)))
    small, large = (render(history, *size) for size in SIZES)
    bars = [sum(char in "▁▂▃▄▅▆▇█" for char in lines[1]) for lines in (small, large)]
    assert bars[0] < bars[1]
    assert "organization/model-11" not in "\n".join(small)
    assert "organization/model-11" in "\n".join(large)
    assert REASON in "\n".join(large)


def test_only_long_names_and_reasons_are_cut() -> None:
    snapshot = make_snapshot()
    snapshot["models"][0]["name"] = "organization/" + 90 * "x"
    lines = render(history_of(snapshot), 80, 24)
    (row,) = (line for line in lines if "xxx" in line)
    assert "…" in row
    assert row.split("…")[1].split() == ["ready", "openvino", "·", "bf16", "0", "20"]


def test_values_stand_at_their_names() -> None:
    text = "\n".join(render(history_of(make_snapshot()), 140, 50))
    assert "embed.example" in text
    assert "requests/s          120" in text
    assert "p99             22.5 ms" in text
    assert "queued 52 k tokens, oldest 1.50 s" in text
    assert "2 → 3  93 %  arrivals" in text
    assert "cost" not in text  # no model has a price


def test_what_is_not_known_is_a_dash() -> None:
    lines = render(history_of(make_snapshot(None)), 80, 24)
    assert lines[1].split()[:2] == ["requests/s", "–"]


def test_a_lost_connection_is_said_and_forgotten() -> None:
    history = history_of(make_snapshot())
    history.receive(Disconnected("Connection refused."))
    assert "No connection: Connection refused." in render(history, 80, 24)[-1]
    history.receive(make_snapshot())
    assert "No connection" not in render(history, 80, 24)[-1]


def test_a_pause_keeps_the_frame_and_loses_nothing() -> None:
    history = history_of(make_snapshot(1.0))
    history.toggle_pause()
    before = render(history, 80, 24)
    history.receive(make_snapshot(2.0))
    assert render(history, 80, 24) == before
    assert before[-1].startswith("paused")
    history.toggle_pause()
    assert render(history, 80, 24)[1].split()[:3] == ["requests/s", "2", "▅█"]


def test_models_are_sorted() -> None:
    history = history_of(make_snapshot())
    orders = {}
    for _ in range(4):
        names = [model["name"][-1] for model in history.models()]
        orders[history.order] = "".join(names)
        assert history.order in render(history, 80, 24)[-1]
        history.next_order()
    assert orders == {
        "as configured": "012",
        "by requests": "210",
        "by queued tokens": "102",
        "by name": "012",
    }


def test_names_cannot_control_the_terminal() -> None:
    snapshot = make_snapshot()
    snapshot["models"][0]["name"] = "\x1b[2J[red]bold\r\nnext"
    text = "\n".join(render(history_of(snapshot), 80, 24))
    assert "\x1b" not in text
    assert "[red]bold" in text
    assert len(text.splitlines()) == 24


def test_a_frame_without_a_window_has_every_row() -> None:
    lines = render(history_of(make_snapshot(models=60)), 100, None)
    assert any("organization/model-59" in line for line in lines)
    assert not any("quit" in line for line in lines)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], "    "),
        ([0.0, 0.0], "  ▁▁"),
        ([None, 1.0, 2.0], "  ▅█"),
        ([9.0, 1.0, 2.0, 3.0, 4.0], "▃▅▇█"),
    ],
)
def test_a_sparkline_has_the_latest_values(values: Any, line: str) -> None:
    assert sparkline(values, 4) == line
