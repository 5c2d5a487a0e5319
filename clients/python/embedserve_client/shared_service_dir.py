"""The directory through which programs share one service: lock files and a status report.

Each program that uses the service holds a lock on a file of its own. The operating system releases
the locks of a process when it exits, even by a signal, so no lock outlives its program and nothing
has to be cleaned up.
"""

import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

ServiceState = Literal["starting", "ready", "restarting", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What the supervisor process reports about the service."""

    state: ServiceState
    service_pid: int | None = None
    restarts: int = 0  #: since the supervisor process started
    message: str = ""  #: the last line of the service's output, or the reason of a failure


class SharedServiceDir:
    """The directory of one service."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "users").mkdir(exist_ok=True)
        self.path = path
        self.log = path / "service.log"
        self._report = path / "report.json"
        self._restart_request = path / "restart"
        #: Held by the supervisor process while it runs.
        self.supervisor_lock = FileLock(path / "supervisor.lock", thread_local=False)

    def has_supervisor(self) -> bool:
        """Returns whether a supervisor process is running."""
        return _is_locked(self.path / "supervisor.lock")

    def register_user(self) -> FileLock:
        """Returns a lock that marks this process as a user until it is released."""
        with self._registry_lock():
            name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            lock = FileLock(self.path / "users" / name, thread_local=False)
            lock.acquire()
            return lock

    def count_users(self) -> int:
        """Returns the number of users, and removes the files of processes that exited."""
        count = 0
        # Without the lock, a file that is created but not locked yet would look abandoned.
        with self._registry_lock():
            for file in (self.path / "users").iterdir():
                if _is_locked(file):
                    count += 1
                else:
                    with suppress(OSError):
                        file.unlink()
        return count

    def _registry_lock(self) -> FileLock:
        return FileLock(self.path / "users.lock", timeout=10)

    def write_report(self, report: ServiceReport) -> None:
        """Replaces the report atomically."""
        temporary = self._report.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(report)), "utf-8")
        os.replace(temporary, self._report)

    def read_report(self) -> ServiceReport | None:
        """Returns the last report; None: there is none."""
        try:
            return ServiceReport(**json.loads(self._report.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def clear(self) -> None:
        """Removes the report and the restart request of an earlier supervisor process."""
        for file in (self._report, self._restart_request):
            file.unlink(missing_ok=True)

    def request_restart(self) -> None:
        """Asks the supervisor process to restart the service."""
        self._restart_request.touch()

    def consume_restart_request(self) -> bool:
        """Returns whether a restart was requested, and removes the request."""
        with suppress(FileNotFoundError):
            self._restart_request.unlink()
            return True
        return False


def _is_locked(file: Path) -> bool:
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False
