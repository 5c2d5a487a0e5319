"""A worker of `embedserve run`: a program that is started again when it fails."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import psutil

from serve_app.command.process_group import POPEN_OPTIONS, group_processes, send_stop
from serve_app.command.process_tree import is_running, wait_or_kill
from serve_app.command.progress import print_step
from serve_app.command.restarts import Restarts
from serve_app.command.service_process import StartupError
from serve_app.command.worker_guard import WorkerGuard

RestartCondition = Literal["on-failure", "always"]
WorkerState = Literal["running", "waiting", "finished", "failed", "stopped", "killed"]


class Worker:
    """A program with its environment. It prints a line at each change of its state."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        guard: WorkerGuard,
        restarts: Restarts,
        *,
        condition: RestartCondition = "on-failure",
    ) -> None:
        """Creates a worker without starting it.

        Args:
            name: the subject of the lines.
            command: the program and its arguments.
            env: environment variables in addition to those of this process.
            guard: ends the worker if this process is killed.
            restarts: how often it is started again.
            condition: whether exit code 0 ends the worker, or is a failure like any other.
        """
        self.state: WorkerState = "waiting"
        self.restart_count = 0
        self._name = name
        self._command = command
        self._env = env
        self._guard = guard
        self._restarts = restarts
        self._condition = condition
        self._process: subprocess.Popen[bytes] | None = None
        self._group: set[psutil.Process] = set()
        self._started_at = self._restart_at = 0.0

    def start(self) -> None:
        """Starts the program and returns at once.

        Raises:
            StartupError: the operating system can't start it.
        """
        try:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                **POPEN_OPTIONS,
            )
        except OSError as error:
            raise StartupError(f"{self._command[0]} can't be started: {error.strerror}.") from None
        self._guard.add(self._process.pid)
        self.state = "running"
        self._started_at = time.monotonic()
        self._print("started", f"PID {self._process.pid}")

    def check(self) -> None:
        """Notices the end of the program, and starts it again when its delay is over."""
        now = time.monotonic()
        if self.state == "waiting" and now >= self._restart_at:
            self.restart_count += 1
            self.start()
        if self.state != "running" or (status := self.exit_status()) is None:
            return
        self._kill()  # what it has started and left
        if self._condition == "on-failure" and status == "exit code 0":
            self.state = "finished"
            self._print("finished", status)
            return
        self._restarts.add_failure(now - self._started_at)
        if self._restarts.exhausted:
            self.state = "failed"
            text = f"{status}; it has failed {self._restarts.failures} times in a row"
            self._print("failed", f"{text} and isn't started again")
            return
        self.state = "waiting"
        self._restart_at = now + self._restarts.delay_s
        self._print("exited", f"{status}; restart {self._restarts}")

    def exit_status(self) -> str | None:
        """Returns how the program has ended; None: it runs."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the worker."""
        if self.state == "running" and self._process is not None:
            self._find_group(self._process.pid)  # children of an exited parent are hard to find
            send_stop(self._process.pid, number)

    def has_ended(self) -> bool:
        """Returns whether all processes of the worker have ended."""
        if self._process is None or self.state != "running":
            return True
        self._find_group(self._process.pid)
        return self._process.poll() is not None and not any(map(is_running, self._group))

    def stop(self) -> None:
        """Ends what still runs, and prints how the worker ended."""
        if self.state == "waiting":
            self.state = "stopped"
        if self.state != "running":
            return
        self.state = "stopped" if self.has_ended() else "killed"
        self._kill()
        self._print(self.state, str(self.exit_status()))

    def _kill(self) -> None:
        """Kills all processes of the worker, and waits until they have ended."""
        assert self._process is not None, "It is called while the worker runs. This is a bug."
        pid = self._process.pid
        self._find_group(pid)
        self._process.kill()
        self._process.wait()
        self._find_group(pid)
        wait_or_kill([*self._group], 0)
        self._group.clear()
        self._guard.remove(pid)

    def _find_group(self, pid: int) -> None:
        self._group.update(group_processes(pid))

    def _print(self, label: str, text: str) -> None:
        print_step(label, f"{self._name}: {text}")
