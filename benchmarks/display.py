"""The progress display: a live panel on a terminal, plain lines on standard error elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .load import Progress

#: The weight of the plan in the estimate, in seconds of measured work.
_PLAN_WEIGHT_S = 300.0


class Display:
    """Shows the current step and the remaining time; a context manager."""

    def __init__(self, planned_s: float) -> None:
        """Starts the clock.

        Args:
            planned_s: how long all steps should take. The durations of finished steps correct it.
        """
        self._planned_s = self._remaining_s = planned_s
        self._finished_s = 0.0
        self._start = self._estimated_at = time.monotonic()
        self._step = ""
        self._progress: Progress | None = None
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, get_renderable=self._panel, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def start_step(self, description: str) -> None:
        """Shows a new step."""
        self._step, self._progress = description, None

    def update(self, progress: Progress) -> None:
        """Shows the progress of a load run."""
        self._progress = progress

    def finish_step(self, planned_s: float, summary: str) -> None:
        """Updates the estimate after a step that was planned to take `planned_s`.

        A summary that isn't empty is printed.
        """
        self._finished_s += planned_s
        share = min(1.0, self._finished_s / self._planned_s)
        self._estimated_at = time.monotonic()
        elapsed_s = self._estimated_at - self._start
        slowdown = (elapsed_s + _PLAN_WEIGHT_S) / (self._finished_s + _PLAN_WEIGHT_S)
        self._remaining_s = max(0.0, self._planned_s - self._finished_s) * slowdown
        if summary:
            self.print(f"{share:4.0%}  {_format_duration(self.remaining_s())} left  {summary}")

    def print(self, line: str) -> None:
        """Prints a line above the panel."""
        if self._console.is_terminal:
            self._console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def remaining_s(self) -> float:
        """Returns the estimated seconds until the last step ends."""
        return max(0.0, self._remaining_s - (time.monotonic() - self._estimated_at))

    def _panel(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(f"{_format_duration(self.remaining_s())} left", self._step)
        if self._progress is not None:
            grid.add_row("", _format_progress(self._progress))
        return grid


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Returns the main metrics of a run on one line."""
    parts = [f"{metrics['texts_per_s']:.0f} texts/s"]
    if "p50_ms" in metrics:
        parts.append(f"p50 {metrics['p50_ms']:.1f} ms  p99 {metrics['p99_ms']:.1f} ms")
    if failed := sum(metrics.get("failed", {}).values()):
        parts.append(f"{failed} failed")
    if replicas := metrics.get("replicas"):
        parts.append(f"{replicas} replicas")
    return "  ".join(parts)


def _format_progress(progress: Progress) -> str:
    return (
        f"{progress.requests_per_s:.0f} requests/s   p50 {progress.p50_ms:.1f} ms   "
        f"p99 {progress.p99_ms:.1f} ms   {progress.failed} failed   {progress.pending} pending"
    )


def _format_duration(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
