"""Where the programs that share one service meet: a folder of locks, and what its keeper tells.

Whoever uses the service holds a lease, a locked file. The system lets go of a lock when its process
ends, however it ends, so that a lease never outlives its program and nobody needs to tidy up.
"""

import json
import os
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from filelock import Timeout as Taken

State = Literal["starting", "ready", "restarting", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a keeper tells of its service."""

    state: State
    service_pid: int | None = None
    restarts: int = 0  #: since the keeper began
    message: str = ""  #: the last that the service said, or why it failed


class Room:
    """The folder of one service."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "leases").mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "service.log"
        self._told = folder / "report.json"
        self._restart = folder / "restart"
        #: Held by the keeper as long as it lives.
        self.keeping = FileLock(folder / "keeper.lock", thread_local=False)

    def has_keeper(self) -> bool:
        """Whether somebody keeps the service."""
        return not _can_be_taken(self.folder / "keeper.lock")

    def lease(self) -> FileLock:
        """A lease, held until it is released or this process ends."""
        with self._guard():
            lease = FileLock(
                self.folder / "leases" / f"{os.getpid()}-{uuid.uuid4().hex[:8]}", thread_local=False
            )
            lease.acquire()
            return lease

    def leases(self) -> int:
        """How many leases are held; those of programs that have ended are removed."""
        held = 0
        # Between a lease's making and its locking nobody may take it for an old one.
        with self._guard():
            for file in (self.folder / "leases").iterdir():
                if _can_be_taken(file):
                    with suppress(OSError):
                        file.unlink()
                else:
                    held += 1
        return held

    def _guard(self) -> FileLock:
        return FileLock(self.folder / "guard.lock", timeout=10)

    def tell(self, report: Report) -> None:
        """Leaves a report for whoever asks."""
        beside = self._told.with_suffix(".new")
        beside.write_text(json.dumps(asdict(report)), "utf-8")
        os.replace(beside, self._told)

    def report(self) -> Report | None:
        """What the keeper told last; None: nothing yet."""
        try:
            return Report(**json.loads(self._told.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def forget(self) -> None:
        """Removes what an earlier keeper told, or was asked."""
        for file in (self._told, self._restart):
            file.unlink(missing_ok=True)

    def ask_for_restart(self) -> None:
        """Has the keeper end the service and start it again."""
        self._restart.touch()

    def restart_is_asked_for(self) -> bool:
        """Whether somebody wants that; asked once, it is done with."""
        with suppress(FileNotFoundError):
            self._restart.unlink()
            return True
        return False


def _can_be_taken(file: Path) -> bool:
    lock = FileLock(file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Taken:
        return False
    lock.release()
    return True
