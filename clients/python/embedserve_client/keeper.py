"""Keeps one service running while anybody uses it: `python -m embedserve_client.keeper`.

A process of its own, started by the first program that wants the service and ended by itself when
the last has gone. The service's standard input is a pipe that only this process holds: a service
that ends with its input never outlives its keeper.
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

from filelock import Timeout as Taken

from embedserve_client.client import Client
from embedserve_client.service_room import Report, Room, State

_POLL_S = 0.25
#: How long nobody may use the service before it is ended: a program may be about to begin.
_GRACE_S = 1.0
_STOP_S = 60.0
_HURRY_S = 10.0
#: Somebody who only looks whether there is a keeper holds the lock for a moment.
_LOOK_S = 2.0
#: A service that was up for so long has not failed to start.
_SETTLED_S = 60.0
_MOST_PAUSE_S = 30.0
_LOG_BYTES = 8 << 20
_TAIL_LINES = 15


class Keeper:
    """Starts the service, starts it again when it ends, and ends it when nobody needs it."""

    def __init__(
        self,
        room: Room,
        url: str,
        command: Sequence[str],
        *,
        first_pause_s: float,
        max_restarts: int,
        ready_timeout_s: float,
    ) -> None:
        """A keeper.

        Args:
            room: where it tells what it does.
            url: where the service will answer.
            command: starts it; it must end when its standard input does.
            first_pause_s: before it is started again; doubled after each failure in a row.
            max_restarts: failures in a row after which it is given up.
            ready_timeout_s: how long it may take to answer.
        """
        self._room = room
        self._client = Client(url, fallback="none")
        self._command = command
        self._first_pause_s = first_pause_s
        self._max_restarts = max_restarts
        self._ready_timeout_s = ready_timeout_s
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._service: subprocess.Popen[str] | None = None
        self._failures = 0
        self._restarts = 0
        self._unused_since: float | None = None
        self._ended = False
        self._told: Report | None = None

    def keep(self) -> None:
        """Returns when the service isn't needed any more, or doesn't stay up."""
        try:
            while self._is_used():
                self._run_once()
                if self._failures > self._max_restarts:
                    self._tell("failed", self._why())
                    return
                if self._is_used():
                    self._restarts += 1
                    self._pause()
            self._tell("stopping")
        finally:
            self._stop()

    def end(self) -> None:
        """Has `keep` return soon."""
        self._ended = True

    def _run_once(self) -> None:
        """One life of the service."""
        began = time.monotonic()
        ready = False
        self._tell("starting")
        self._start()
        while self._service is not None and self._service.poll() is None and self._is_used():
            if not ready and self._client.is_healthy(timeout_s=1.0):
                ready = True
                self._tell("ready", "")
            elif not ready:
                self._tell("starting")
                if time.monotonic() - began > self._ready_timeout_s:
                    self._say(f"It was not ready after {self._ready_timeout_s:.0f} s.")
                    break
            if self._room.restart_is_asked_for():
                self._stop()
                self._failures = -1  # not a failure
            time.sleep(_POLL_S)
        if not self._is_used():
            return
        self._stop()
        settled = ready and time.monotonic() - began > _SETTLED_S
        self._failures = 1 if settled else self._failures + 1

    def _is_used(self) -> bool:
        if self._ended:
            return False
        now = time.monotonic()
        if self._room.leases():
            self._unused_since = None
            return True
        self._unused_since = self._unused_since or now
        return now - self._unused_since < _GRACE_S

    def _pause(self) -> None:
        if self._failures < 1:
            return
        pause_s = min(_MOST_PAUSE_S, self._first_pause_s * 2 ** (self._failures - 1))
        self._tell("restarting", self._why())
        end = time.monotonic() + pause_s
        while self._is_used() and time.monotonic() < end:
            time.sleep(min(_POLL_S, pause_s))

    def _start(self) -> None:
        self._tail.clear()
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
            self._say(f"It can't be started: {error}")
            return
        threading.Thread(target=self._listen, args=(self._service,), daemon=True).start()

    def _listen(self, service: "subprocess.Popen[str]") -> None:
        assert service.stdout is not None, "It was started with a pipe. This is a bug."
        for line in service.stdout:
            self._say(line.rstrip())

    def _say(self, line: str) -> None:
        if line:
            self._tail.append(line)
        log = self._room.log
        too_long = log.exists() and log.stat().st_size > _LOG_BYTES
        with log.open("w" if too_long else "a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _why(self) -> str:
        status = None if self._service is None else self._service.poll()
        ended = "" if status is None else f"It ended with status {status}. "
        return ended + "\n".join(self._tail)

    def _stop(self) -> None:
        service = self._service
        if service is None or service.poll() is not None:
            return
        if service.stdin is not None:
            service.stdin.close()
        # A signal as well would be a second request, which tells the service to hurry.
        for patience_s, hurry in ((_STOP_S, service.terminate), (_HURRY_S, service.kill)):
            try:
                service.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                hurry()
        service.wait()

    def _tell(self, state: State, message: str | None = None) -> None:
        pid = None if self._service is None else self._service.pid
        if message is None:
            message = self._tail[-1] if self._tail else ""
        report = Report(state, pid, self._restarts, message)
        if report != self._told:
            self._told = report
            self._room.tell(report)


def main() -> int:
    """Keeps what the arguments say; nothing where somebody does already."""
    parser = argparse.ArgumentParser(prog="python -m embedserve_client.keeper")
    parser.add_argument("folder", type=Path)
    parser.add_argument("url")
    parser.add_argument("--first-pause-s", type=float, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--ready-timeout-s", type=float, required=True)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    room = Room(arguments.folder)
    try:
        with room.keeping.acquire(timeout=_LOOK_S):
            room.forget()
            keeper = Keeper(
                room,
                arguments.url,
                arguments.command,
                first_pause_s=arguments.first_pause_s,
                max_restarts=arguments.max_restarts,
                ready_timeout_s=arguments.ready_timeout_s,
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: keeper.end())
            keeper.keep()
    except Taken:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
