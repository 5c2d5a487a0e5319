"""Shows a run while it goes on: a panel that moves on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .load import Pulse

#: How much the plan is believed: after so many seconds, as much as what was measured.
_TRUST_S = 300.0


class Display:
    """What goes on now, and how long until the end."""

    def __init__(self, total_s: float) -> None:
        """A display of work that should take `total_s` seconds, corrected by what it takes."""
        self._total_s = self._left_s = total_s
        self._done_s = 0.0
        self._begin = self._told = time.monotonic()
        self._doing = ""
        self._pulse: Pulse | None = None
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

    def doing(self, what: str) -> None:
        """Something begins."""
        self._doing, self._pulse = what, None

    def pulse(self, pulse: Pulse) -> None:
        """The run goes on."""
        self._pulse = pulse

    def done(self, planned_s: float, line: str) -> None:
        """Something ended: it stood for `planned_s` of the whole; `line` stays on the screen."""
        self._done_s += planned_s
        share = min(1.0, self._done_s / self._total_s)
        self._told = time.monotonic()
        gone_s = self._told - self._begin
        slowness = (gone_s + _TRUST_S) / (self._done_s + _TRUST_S)
        self._left_s = max(0.0, self._total_s - self._done_s) * slowness
        if line:
            self.say(f"{share:4.0%}  {_clock(self.left_s())} left  {line}")

    def say(self, line: str) -> None:
        """Writes a line that stays."""
        if self._console.is_terminal:
            self._console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def left_s(self) -> float:
        """Seconds to the end, at the speed of what is done."""
        return max(0.0, self._left_s - (time.monotonic() - self._told))

    def _panel(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_row(f"{_clock(self.left_s())} left", self._doing)
        if self._pulse is not None:
            grid.add_row("", _words(self._pulse))
        return grid


def figures_line(figures: Mapping[str, Any]) -> str:
    """The figures of one run in a few words."""
    parts = [f"{figures['texts_per_s']:.0f} texts/s"]
    if "p50_ms" in figures:
        parts.append(f"p50 {figures['p50_ms']:.1f} ms  p99 {figures['p99_ms']:.1f} ms")
    if failed := sum(figures.get("failed", {}).values()):
        parts.append(f"{failed} failed")
    if replicas := figures.get("replicas"):
        parts.append(f"{replicas} replicas")
    return "  ".join(parts)


def _words(pulse: Pulse) -> str:
    return (
        f"{pulse.requests_per_s:.0f} requests/s   p50 {pulse.p50_ms:.1f} ms   "
        f"p99 {pulse.p99_ms:.1f} ms   {pulse.failed} failed   {pulse.waiting} waiting"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
