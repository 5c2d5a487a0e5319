"""The process that runs a shared service: `python -m embedserve_client.supervisor_process`.

The first program that needs the service starts this process; it exits when the last program has
released the service. It holds the only write end of the service's standard input. A service that
exits at the end of its input therefore can't outlive it, even if this process is killed.
"""

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from embedserve_client.client import Client
from embedserve_client.errors import EmbedError, NetworkError, RequestTimeoutError
from embedserve_client.shared_service_dir import ServiceReport, ServiceState, SharedServiceDir

_POLL_S = 0.25
#: How long the service stays up without users: the next program may be about to start.
_IDLE_GRACE_S = 1.0
#: Time between two checks of a ready service, and the timeout of each.
_CHECK_PERIOD_S = 1.0
_CHECK_TIMEOUT_S = 5.0
#: How long the service may take to exit after the end of its input, and then after SIGTERM.
_STOP_TIMEOUTS_S = (60.0, 10.0)
_UNRESPONSIVE_STOP_TIMEOUTS_S = (5.0, 5.0)
#: A status query holds the supervisor lock for a moment, which is no second supervisor.
_LOCK_TIMEOUT_S = 2.0
#: After this time, a crash doesn't count as a failure to start.
_STABLE_S = 60.0
_MAX_RESTART_DELAY_S = 30.0
_MAX_LOG_BYTES = 8 << 20
_TAIL_LINES = 15


class SupervisorProcess:
    """Starts the service, restarts it if it crashes or hangs, and stops it when it has no users."""

    def __init__(
        self,
        shared_dir: SharedServiceDir,
        url: str,
        command: Sequence[str],
        *,
        restart_delay_s: float,
        max_restarts: int,
        unresponsive_timeout_s: float,
        ready_timeout_s: float,
    ) -> None:
        """Creates a supervisor.

        Args:
            shared_dir: counts the users and receives the reports.
            url: the URL of the service.
            command: starts the service, which must exit when its standard input ends.
            restart_delay_s: the delay before the first restart; doubles with each failure in a row.
            max_restarts: the number of failures in a row after which the supervisor gives up.
            unresponsive_timeout_s: the time without an answer after which a ready service counts
                as crashed.
            ready_timeout_s: the time in which the service must become healthy.
        """
        self._shared_dir = shared_dir
        self._url = url
        self._client = Client(url, fallback="none")
        self._command = command
        self._restart_delay_s = restart_delay_s
        self._max_restarts = max_restarts
        self._unresponsive_timeout_s = unresponsive_timeout_s
        self._ready_timeout_s = ready_timeout_s
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._service: subprocess.Popen[str] | None = None
        self._failures = 0
        self._restarts = 0
        self._next_check = 0.0
        self._unanswered_since: float | None = None
        self._idle_since: float | None = None
        self._stop_requested = False
        self._last_report: ServiceReport | None = None

    def run(self) -> None:
        """Runs the service until it has no users or has failed too often."""
        try:
            while self._is_needed():
                self._run_service()
                if self._failures > self._max_restarts:
                    self._report("failed", self._failure_message())
                    return
                if self._is_needed():
                    self._restarts += 1
                    self._delay_restart()
            self._report("stopping")
        finally:
            self._stop_service()

    def request_stop(self) -> None:
        """Makes `run` stop the service and return."""
        self._stop_requested = True

    def _run_service(self) -> None:
        """Starts the service and monitors it until it exits, hangs, or isn't needed."""
        started_at = time.monotonic()
        ready_at: float | None = None
        self._report("starting")
        self._start_service()
        while self._service is not None and self._service.poll() is None and self._is_needed():
            if ready_at is None and self._client.is_healthy(timeout_s=1.0):
                ready_at = time.monotonic()
                self._report("ready", "")
            elif ready_at is None:
                self._report("starting")
                if time.monotonic() - started_at > self._ready_timeout_s:
                    self._log(f"The service was not ready after {self._ready_timeout_s:.0f} s.")
                    break
            elif not self._is_responsive():
                self._log(f"The service has not answered for {self._unresponsive_timeout_s:.0f} s.")
                self._stop_service(_UNRESPONSIVE_STOP_TIMEOUTS_S)
                break
            if self._shared_dir.consume_restart_request():
                self._stop_service()
                self._failures = -1  # a requested restart is no failure
            time.sleep(_POLL_S)
        if not self._is_needed():
            return
        served_until = self._unanswered_since or time.monotonic()
        self._stop_service()
        was_stable = ready_at is not None and served_until - ready_at > _STABLE_S
        self._failures = 1 if was_stable else self._failures + 1

    def _is_responsive(self) -> bool:
        """Returns whether a check was answered lately. An error response is an answer."""
        now = time.monotonic()
        if now < self._next_check:
            return True
        try:
            # A new connection: those that are open work even if the port is closed.
            with Client(self._url, fallback="none") as client:
                client.health(_CHECK_TIMEOUT_S)
            self._unanswered_since = None
        except EmbedError as error:
            is_answer = not isinstance(error, NetworkError | RequestTimeoutError)
            self._unanswered_since = None if is_answer else self._unanswered_since or now
        checked = time.monotonic()
        self._next_check = checked + _CHECK_PERIOD_S
        return checked - (self._unanswered_since or checked) < self._unresponsive_timeout_s

    def _is_needed(self) -> bool:
        if self._stop_requested:
            return False
        now = time.monotonic()
        if self._shared_dir.count_users():
            self._idle_since = None
            return True
        self._idle_since = self._idle_since or now
        return now - self._idle_since < _IDLE_GRACE_S

    def _delay_restart(self) -> None:
        if self._failures < 1:
            return
        delay_s = min(_MAX_RESTART_DELAY_S, self._restart_delay_s * 2 ** (self._failures - 1))
        self._report("restarting", self._failure_message())
        deadline = time.monotonic() + delay_s
        while self._is_needed() and time.monotonic() < deadline:
            time.sleep(min(_POLL_S, delay_s))

    def _start_service(self) -> None:
        self._tail.clear()
        self._unanswered_since = None
        try:
            self._service = subprocess.Popen(
                list(self._command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self._service = None
            self._log(f"The service can't be started: {error}")
            return
        threading.Thread(target=self._read_output, args=(self._service,), daemon=True).start()

    def _read_output(self, service: "subprocess.Popen[str]") -> None:
        assert service.stdout is not None, "The service has no output pipe. This is a bug."
        for line in service.stdout:
            self._log(line.rstrip())

    def _log(self, line: str) -> None:
        if line:
            self._tail.append(line)
        log = self._shared_dir.log
        is_full = log.exists() and log.stat().st_size > _MAX_LOG_BYTES
        with log.open("w" if is_full else "a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _failure_message(self) -> str:
        status = None if self._service is None else self._service.poll()
        exit_message = "" if status is None else f"The service exited with status {status}. "
        return exit_message + "\n".join(self._tail)

    def _stop_service(self, timeouts_s: tuple[float, float] = _STOP_TIMEOUTS_S) -> None:
        service = self._service
        if service is None or service.poll() is not None:
            return
        if service.stdin is not None:
            service.stdin.close()
        # The end of its input already asks the service to stop. A signal would be a second request,
        # which aborts the graceful shutdown.
        for timeout_s, escalate in zip(timeouts_s, (service.terminate, service.kill), strict=True):
            try:
                service.wait(timeout_s)
                return
            except subprocess.TimeoutExpired:
                escalate()
        service.wait()

    def _report(self, state: ServiceState, message: str | None = None) -> None:
        pid = None if self._service is None else self._service.pid
        if message is None:
            message = self._tail[-1] if self._tail else ""
        report = ServiceReport(state, pid, self._restarts, message)
        if report != self._last_report:
            self._last_report = report
            self._shared_dir.write_report(report)


def main() -> int:
    """Runs a supervisor, unless one is running in the same directory already."""
    parser = argparse.ArgumentParser(prog="python -m embedserve_client.supervisor_process")
    parser.add_argument("directory", type=Path)
    parser.add_argument("url")
    parser.add_argument("--restart-delay-s", type=float, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--unresponsive-timeout-s", type=float, required=True)
    parser.add_argument("--ready-timeout-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    shared_dir = SharedServiceDir(arguments.directory)
    try:
        with shared_dir.supervisor_lock.acquire(timeout=_LOCK_TIMEOUT_S):
            shared_dir.clear()
            supervisor = SupervisorProcess(
                shared_dir,
                arguments.url,
                arguments.command,
                restart_delay_s=arguments.restart_delay_s,
                max_restarts=arguments.max_restarts,
                unresponsive_timeout_s=arguments.unresponsive_timeout_s,
                ready_timeout_s=arguments.ready_timeout_s,
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: supervisor.request_stop())
            supervisor.run()
    except Timeout:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
