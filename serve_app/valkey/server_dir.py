"""Slots: the folders in which cache servers of this machine keep their data.

What replicas and the supervisor of a server must agree on: which files there are, and what the
locks on them mean. Kept light, since the supervisor is a process of its own that imports this.

    slots.lock     beside the slots: held for a moment by whoever looks at them or changes them
    lease          shared: a replica uses the server; exclusive: the server is about to end
    supervisor     exclusive: a supervisor is alive
    owner.json     whose server it is, and how it shall run
    dump.rdb       its data
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":  # where there is no server for it either
    import fcntl

_POLL_S = 0.02
_ANSWER_S = 1.0


class ServiceInstance(NamedTuple):
    """Whose server it is."""

    service: str
    host: str  #: a cache folder may be shared by machines, a server can't be
    pid: int  #: as long as this process lives, the service may come back for its server


class ServerOptions(NamedTuple):
    """How a server shall run."""

    socket: str
    max_bytes: int
    grace_s: float  #: how long it stays while its owner lives and no replica uses it


class FileLock:
    """A lock on a file that the kernel takes back when its holder dies, however it dies.

    Never waits. A descriptor of its own each: two in one process are as strange to each other
    as two in two processes. It goes along when the process forks, and not into a new program.
    """

    def __init__(self, file: Path) -> None:
        """Opens the file, which is made if need be, and locks nothing yet."""
        self._fd: int | None = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)

    def try_shared(self) -> bool:
        """Whether it is now held beside others that share it. Lowers an exclusive lock."""
        return self._try(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Whether it is now held alone. A shared lock of its own is lost if not."""
        return self._try(fcntl.LOCK_EX)

    def free(self) -> None:
        """Gives it back; it can be taken again."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives it back for good; safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _try(self, kind: int) -> bool:
        assert self._fd is not None, "It was closed. This is a bug."
        try:
            fcntl.flock(self._fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_exclusive(lock: FileLock, deadline: float) -> None:
    """Waits for a lock until `deadline`, in seconds of the monotonic clock.

    Raises:
        TimeoutError: others held it for the whole time.
    """
    while not lock.try_exclusive():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_S)


def slots_lock(base: Path) -> FileLock:
    """The lock under which the slots in a folder are looked at and changed."""
    return FileLock(base / "slots.lock")


@contextmanager
def locked_slots(base: Path, deadline: float) -> Iterator[None]:
    """Holds that lock; the same `deadline` and error as `wait_exclusive`."""
    lock = slots_lock(base)
    try:
        wait_exclusive(lock, deadline)
        yield
    finally:
        lock.close()


class ServerDir:
    """One folder, for one server at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dump = folder / "dump.rdb"
        self.log = folder / "server.log"
        self._about = folder / "owner.json"

    def make(self) -> None:
        """Makes the folder if need be, for this user alone: vectors tell of their texts."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.folder.chmod(0o700)

    def lease(self) -> FileLock:
        """The lock that replicas share."""
        return FileLock(self.folder / "lease")

    def supervisor(self) -> FileLock:
        """The lock that a supervisor holds as long as it lives."""
        return FileLock(self.folder / "supervisor")

    def is_supervised(self) -> bool:
        """Whether a supervisor is alive."""
        lock = self.supervisor()
        try:
            return not lock.try_shared()
        finally:
            lock.close()

    def read(self) -> tuple[ServiceInstance, ServerOptions] | None:
        """What was written last; None when there is nothing that can be read."""
        try:
            about = json.loads(self._about.read_text("utf-8"))
            return ServiceInstance(**about["owner"]), ServerOptions(**about["terms"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, owner: ServiceInstance, terms: ServerOptions) -> None:
        """Writes down whose server it is and how it shall run, whole or not at all."""
        text = json.dumps({"owner": owner._asdict(), "terms": terms._asdict()})
        new = self._about.with_suffix(".new")
        new.write_text(text, "utf-8")
        new.replace(self._about)

    def last_words(self) -> str:
        """The last line of the log; empty where there is none."""
        with suppress(OSError):
            lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def pid_exists(pid: int) -> bool:
    """Whether a process with that id exists.

    An id may be used again, so a dead process can be taken for alive. A server then merely
    stays for its time of grace, which isn't worth more care here.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def ask(path: str, command: str) -> bytes:
    """The beginning of a server's answer to a command of plain words.

    Raises:
        OSError: nobody listens there, or doesn't answer within a second.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(path)
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(256)
