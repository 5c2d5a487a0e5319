"""A service that is there while a program runs, shared with all others that want the same one.

    with Supervisor(port=8421) as supervisor:
        vectors = Client(supervisor.url).embed(["a text"])

The first program starts it, through a keeper process; the last one to go ends it, whether it
closes, exits, is interrupted or is killed. A service that somebody started otherwise is used as it
is, and never ended.
"""

import atexit
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from filelock import FileLock

from embedserve_client.client import Client
from embedserve_client.errors import NotRunning
from embedserve_client.service_room import Room, State
from embedserve_client.settings import run_folder

_POLL_S = 0.2
_WATCH_S = 1.0
_HEALTH_S = 2.0
#: A keeper that has just been started needs a moment to say so.
_KEEPER_S = 15.0
_STOP_S = 75.0


@dataclass(frozen=True, slots=True)
class Status:
    """How a service is."""

    state: State | Literal["absent"]
    managed: bool  #: False: somebody started it otherwise; it is used, and never ended
    healthy: bool
    pid: int | None = None  #: of the process that was started; None: none was
    restarts: int = 0  #: since its keeper began
    message: str = ""  #: the last that it said, or why it failed


class Supervisor:
    """One program's hold on a service. Safe from many threads."""

    def __init__(
        self,
        port: int = 8000,
        *,
        config: str | Path | None = None,
        command: Sequence[str] | None = None,
        ready_timeout_s: float = 600.0,
        first_pause_s: float = 1.0,
        max_restarts: int = 5,
        on_progress: Callable[[str], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        """A supervisor; nothing is started yet.

        Args:
            port: of this machine's loopback interface, where the service answers.
            config: the configuration file that it serves; None: the service's default.
            command: starts another service than `embedserve serve`; it must answer on `port`, and
                end when its standard input does.
            ready_timeout_s: how long it may take to answer; the first start prepares the model.
            first_pause_s: before a service that ended is started again; doubled for each further
                failure in a row, up to half a minute.
            max_restarts: failures in a row after which it is given up.
            on_progress: is told what goes on while the service starts.
            folder: where programs that share it meet; None: one for each user and port.
        """
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command or _serve(port, config))
        self._ready_timeout_s = ready_timeout_s
        self._first_pause_s = first_pause_s
        self._max_restarts = max_restarts
        self._on_progress = on_progress or (lambda text: None)
        self._room = Room(folder or run_folder() / str(port))
        self._lock = threading.Lock()
        self._lease: FileLock | None = None
        self._ending = threading.Event()

    def start(self) -> Status:
        """Makes sure that the service is there, and waits until it can embed.

        Raises:
            NotRunning: it can't be started, or isn't ready in time.
        """
        with self._lock:
            is_new = self._lease is None
            if is_new:
                self._ending = threading.Event()
                self._lease = self._room.lease()
                atexit.register(self.stop)
            try:
                self._wait_until_ready()
            except BaseException:
                self._let_go()
                raise
            if is_new:
                threading.Thread(target=self._watch, args=(self._ending,), daemon=True).start()
            return self.status()

    def status(self) -> Status:
        """How the service is now."""
        healthy = self._is_healthy()
        report = self._room.report()
        if not self._room.has_keeper():
            failed = report is not None and report.state == "failed" and not healthy
            message = report.message if failed and report else ""
            state: State | Literal["absent"] = "failed" if failed else "absent"
            return Status("ready" if healthy else state, False, healthy, message=message)
        if report is None:
            return Status("starting", True, healthy)
        return Status(
            report.state, True, healthy, report.service_pid, report.restarts, report.message
        )

    def restart(self) -> Status:
        """Ends the service and starts it again, for all that share it.

        Raises:
            NotRunning: it was started otherwise, or doesn't come back.
        """
        before = self.status()
        if not before.managed:
            raise NotRunning(f"What answers at {self.url} wasn't started here: restart it there.")
        self._room.ask_for_restart()
        end = time.monotonic() + self._ready_timeout_s
        while self.status().restarts == before.restarts and time.monotonic() < end:
            time.sleep(_POLL_S)
        return self.start()

    def stop(self, *, wait: bool = True) -> None:
        """Lets the service go; it ends when nobody else uses it.

        Args:
            wait: until it has ended, if nobody else uses it; up to a bit over a minute.
        """
        with self._lock:
            if self._lease is None:
                return
            self._let_go()
        end = time.monotonic() + _STOP_S
        while wait and time.monotonic() < end and self._room.has_keeper():
            if self._room.leases():
                return
            time.sleep(_POLL_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        with Client(self.url, fallback="none") as client:
            return client.is_healthy(_HEALTH_S)

    def _let_go(self) -> None:
        self._ending.set()
        atexit.unregister(self.stop)
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + self._ready_timeout_s
        said, started_at = "", None
        while time.monotonic() < end:
            status = self.status()
            if status.state == "ready" and status.healthy:
                return
            if not status.managed:
                if started_at is not None and time.monotonic() - started_at > _KEEPER_S:
                    raise NotRunning(self._failed(status))
                if started_at is not None and status.state == "failed":
                    raise NotRunning(self._failed(status))
                if started_at is None:
                    self._room.forget()
                    self._start_keeper()
                    started_at = time.monotonic()
            if status.message != said:
                said = status.message
                self._on_progress(said)
            time.sleep(_POLL_S)
        raise NotRunning(f"The service was not ready after {self._ready_timeout_s:.0f} s: {said}")

    def _failed(self, status: Status) -> str:
        return (
            f"The service doesn't stay up: {status.message or 'it said nothing'}\n"
            f"All that it said: {self._room.log}"
        )

    def _start_keeper(self) -> None:
        keeper = subprocess.Popen(
            [
                *(sys.executable, "-m", "embedserve_client.keeper"),
                *("--first-pause-s", str(self._first_pause_s)),
                *("--max-restarts", str(self._max_restarts)),
                *("--ready-timeout-s", str(self._ready_timeout_s)),
                *(str(self._room.folder), self.url, "--", *self._command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in one program's terminal isn't for the others'
        )
        # Whenever it ends, this process is its parent and has to take note.
        threading.Thread(target=keeper.wait, daemon=True).start()

    def _watch(self, ending: threading.Event) -> None:
        """Starts a keeper again when it was killed, and its service with it."""
        while not ending.wait(_WATCH_S):
            if not self._room.has_keeper() and not self._is_healthy():
                report = self._room.report()
                if report is not None and report.state == "failed":
                    return
                self._start_keeper()
                ending.wait(_KEEPER_S)


def _serve(port: int, config: str | Path | None) -> list[str]:
    named = [str(config)] if config is not None else []
    command = [sys.executable, "-m", "embedserve_client.command.main"]
    return [*command, "serve", *named, "--port", str(port), "--until-eof"]


def port_of(url: str) -> int:
    """The port of an address on this machine.

    Raises:
        NotRunning: it is of another machine, where nothing can be started.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost"):
        raise NotRunning(f"A service can be started on this machine only, not at {url}.")
    return parts.port or 8000
