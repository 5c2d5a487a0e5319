"""The signals that ask a command to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Self

from serve_app.command.process_group import STOP_SIGNALS


class StopRequested(Exception):
    """A signal arrived while the command waited for something else."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class StopSignals:
    """Receives SIGINT, SIGTERM and SIGHUP inside a `with` block of the main thread."""

    def __init__(self) -> None:
        self._received = SimpleQueue[signal.Signals]()
        self._interrupting = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            # A shell without job control ignores SIGINT in background jobs. `nohup` means it.
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self, timeout_s: float) -> signal.Signals | None:
        """Waits for a signal, and returns it; None: there was none."""
        try:
            return self._received.get(timeout=timeout_s)
        except Empty:
            return None

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Lets a signal end the block.

        Raises:
            StopRequested: a signal has arrived.
        """
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._interrupting:
            self._interrupting = False  # nothing may interrupt the cleanup
            raise StopRequested(signal.Signals(number))
        self._received.put(signal.Signals(number))
