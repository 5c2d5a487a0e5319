"""Ends workers whose `embedserve run` was killed: `python -m serve_app.command.worker_guard`.

`embedserve run` writes `+PID` to the guard's standard input for each worker that it starts, and
`-PID` for each that has ended. At the end of the input the guard ends the others.
"""

import signal
import subprocess
import sys
from contextlib import suppress

from serve_app.command.process_group import POPEN_OPTIONS, group_processes, send_stop
from serve_app.command.process_tree import wait_or_kill


class WorkerGuard:
    """The guard's process, as `embedserve run` uses it."""

    def __init__(self, stop_timeout_s: float) -> None:
        """Starts the guard.

        Args:
            stop_timeout_s: how long workers may take to stop before they are killed.
        """
        self._command = [sys.executable, "-m", __name__, str(stop_timeout_s)]
        self._worker_pids: set[int] = set()
        self._process = self._start()

    def add(self, pid: int) -> None:
        """Adds a worker that has started."""
        self._worker_pids.add(pid)
        self._send(f"+{pid}\n")

    def remove(self, pid: int) -> None:
        """Removes a worker whose processes have ended."""
        self._worker_pids.discard(pid)
        self._send(f"-{pid}\n")

    def check(self) -> None:
        """Starts the guard again if it was killed."""
        if self._process.poll() is not None:
            self.close()
            self._process = self._start()
            self._send("".join(f"+{pid}\n" for pid in self._worker_pids))

    def close(self) -> None:
        """Ends the guard, and workers that were not removed."""
        assert self._process.stdin is not None, "The guard was started with a pipe. This is a bug."
        self._process.stdin.close()
        self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **POPEN_OPTIONS,
        )

    def _send(self, lines: str) -> None:
        assert self._process.stdin is not None, "The guard was started with a pipe. This is a bug."
        with suppress(BrokenPipeError):  # it was killed: `check` starts another one
            self._process.stdin.write(lines.encode())


def main(stop_timeout_s: float) -> None:
    """Reads the PIDs of workers to the end of the input, and ends those that run."""
    pids = set[int]()
    for line in sys.stdin:
        pid = int(line[1:])
        pids = pids | {pid} if line.startswith("+") else pids - {pid}
    processes = [process for pid in pids for process in group_processes(pid)]
    for pid in pids:
        send_stop(pid, signal.SIGTERM)
    wait_or_kill(processes, stop_timeout_s)


if __name__ == "__main__":
    main(float(sys.argv[1]))
