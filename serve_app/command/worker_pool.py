"""Runs the workers of `embedserve run` until a signal arrives or none is left."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

from serve_app.command.progress import print_step
from serve_app.command.stop_signals import StopSignals
from serve_app.command.worker import Worker
from serve_app.command.worker_guard import WorkerGuard

_POLL_S = 0.2


class WorkerPool:
    """Workers that start and stop together."""

    def __init__(
        self,
        workers: Sequence[Worker],
        guard: WorkerGuard,
        signals: StopSignals,
        *,
        stop_timeout_s: float,
    ) -> None:
        """Creates a pool without starting the workers.

        Args:
            workers: the workers.
            guard: theirs.
            signals: end `run`, and are passed on to the workers.
            stop_timeout_s: how long the workers may take to stop after a signal.
        """
        self._workers = workers
        self._guard = guard
        self._signals = signals
        self._stop_timeout_s = stop_timeout_s

    def run(self, service_failure: Callable[[], str | None]) -> None:
        """Runs the workers until a signal arrives, none is left, or the service has failed.

        Args:
            service_failure: returns why the service has failed; None: it hasn't.

        Raises:
            StartupError: a worker can't be started.
        """
        number: signal.Signals | None = signal.SIGTERM
        try:
            for worker in self._workers:
                worker.start()
            while any(worker.state in ("running", "waiting") for worker in self._workers):
                if number := self._signals.wait(_POLL_S):
                    break
                if service_failure():
                    break
                self._guard.check()
                for worker in self._workers:
                    worker.check()
        finally:
            self._stop(number or signal.SIGTERM)

    @property
    def succeeded(self) -> bool:
        """Whether no worker failed for good or was killed."""
        return all(worker.state in ("finished", "stopped") for worker in self._workers)

    def summary(self) -> str:
        """Returns how the workers ended."""
        states = Counter(worker.state for worker in self._workers)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        restarts = sum(worker.restart_count for worker in self._workers)
        return f"{len(self._workers)} workers: {counts}; restarts: {restarts}"

    def _stop(self, number: signal.Signals) -> None:
        running = [worker for worker in self._workers if worker.state == "running"]
        if running:
            text = f"{len(running)} workers, up to {self._stop_timeout_s:g} s"
            print_step("stopping", f"{text}   (Ctrl-C kills them)")
        for worker in running:
            worker.send(number)
        deadline = time.monotonic() + self._stop_timeout_s
        while not all(worker.has_ended() for worker in running) and time.monotonic() < deadline:
            if self._signals.wait(_POLL_S):
                break
        for worker in self._workers:
            worker.stop()
