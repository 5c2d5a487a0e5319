"""The directories in which the embedded cache servers of this machine keep their data.

A data directory holds numbered server directories. Replicas and supervisors coordinate through
the files in them:

    slots.lock         in the data directory: exclusive while server directories are assigned
    0/lease            shared: a replica uses the server; exclusive: the server is about to stop
    0/supervisor       exclusive: a supervisor is running
    0/owner.json       a `ServerRecord`
    0/dump.rdb         the server's data
    0/password         opens the server, once other machines reach it

File names and the keys in `owner.json` are those of version 0.1, which may run at the same time.
This module imports little, since every supervisor is a separate process that loads it.
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

if sys.platform != "win32":  # which has no embedded server either
    import fcntl

_POLL_S = 0.02
_COMMAND_TIMEOUT_S = 1.0


class ServiceInstance(NamedTuple):
    """The running service that a server belongs to."""

    service: str
    host: str  #: machines may share a data directory, but not a server
    pid: int  #: while this process lives, the service may return to its server


class ServerOptions(NamedTuple):
    """How to run a server."""

    socket: str
    max_bytes: int
    grace_s: float  #: how long it runs without a lease while its owner lives


class ServerRecord(NamedTuple):
    """The content of `owner.json`."""

    owner: ServiceInstance
    options: ServerOptions


class FileLock:
    """An advisory file lock, which the kernel releases when its holder dies.

    Each instance opens a file descriptor of its own, so two locks in one process conflict like two
    in different processes. A forked child inherits the lock; a new program doesn't.
    """

    def __init__(self, file: Path) -> None:
        """Opens the file, creating it if necessary, without locking it."""
        self._fd: int | None = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)

    def try_shared(self) -> bool:
        """Tries to acquire a shared lock, without waiting. Downgrades an exclusive lock."""
        return self._try_lock(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Tries to acquire an exclusive lock, without waiting.

        On failure, a shared lock of this instance is released.
        """
        return self._try_lock(fcntl.LOCK_EX)

    def acquire_exclusive(self, deadline: float) -> None:
        """Waits for an exclusive lock until `deadline`, in seconds of the monotonic clock.

        Raises:
            TimeoutError: others held the lock until then.
        """
        while not self.try_exclusive():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Releases the lock; it can be acquired again."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Releases the lock and closes the file; safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _try_lock(self, operation: int) -> bool:
        assert self._fd is not None, "The lock is closed. This is a bug."
        try:
            fcntl.flock(self._fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def servers_lock(data_dir: Path) -> FileLock:
    """Returns the lock that protects the assignment of server directories."""
    return FileLock(data_dir / "slots.lock")


@contextmanager
def hold_servers_lock(data_dir: Path, deadline: float) -> Iterator[None]:
    """Holds `servers_lock`; `deadline` and errors as in `FileLock.acquire_exclusive`."""
    lock = servers_lock(data_dir)
    try:
        lock.acquire_exclusive(deadline)
        yield
    finally:
        lock.close()


class ServerDir:
    """The directory of one server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dump = path / "dump.rdb"
        self.log = path / "server.log"
        self._record = path / "owner.json"
        self._password = path / "password"

    def create(self) -> None:
        """Creates the directory if necessary, private to the user: vectors reveal their texts.

        Creates its password as well, of 256 bits. Call it while holding `servers_lock`.
        """
        self.path.mkdir(mode=0o700, exist_ok=True)
        self.path.chmod(0o700)
        if not self.password():
            new = self._password.with_suffix(".new")
            new.touch(0o600)
            new.write_text(os.urandom(32).hex(), "utf-8")
            new.replace(self._password)

    def password(self) -> str:
        """Returns the password; empty if an earlier version created the directory."""
        try:
            return self._password.read_text("utf-8")
        except OSError:
            return ""

    def send_command(self, socket_path: str, command: str) -> bytes:
        """Sends an inline command to the server and returns the first line of its reply.

        Raises:
            OSError: no server listens on the socket, or it doesn't answer within a second.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_COMMAND_TIMEOUT_S)
            connection.connect(socket_path)
            # A server that requires no password accepts any.
            connection.sendall(f"AUTH default {self.password()}\r\n{command}\r\n".encode())
            with connection.makefile("rb") as replies:
                replies.readline()
                return replies.readline()

    def lease_lock(self) -> FileLock:
        """Returns the lock that replicas share."""
        return FileLock(self.path / "lease")

    def supervisor_lock(self) -> FileLock:
        """Returns the lock that a supervisor holds for as long as it lives."""
        return FileLock(self.path / "supervisor")

    def is_supervised(self) -> bool:
        """Returns whether a supervisor is running."""
        lock = self.supervisor_lock()
        try:
            return not lock.try_shared()
        finally:
            lock.close()

    def read_record(self) -> ServerRecord | None:
        """Returns what `write_record` wrote last; None if it is missing or unreadable."""
        try:
            record = json.loads(self._record.read_text("utf-8"))
            owner, options = record["owner"], record["terms"]
            return ServerRecord(ServiceInstance(**owner), ServerOptions(**options))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_record(self, record: ServerRecord) -> None:
        """Replaces the record atomically."""
        content = {"owner": record.owner._asdict(), "terms": record.options._asdict()}
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps(content), "utf-8")
        new.replace(self._record)

    def last_log_line(self) -> str:
        """Returns the last line of the log; empty if there is none."""
        with suppress(OSError):
            lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


def pid_exists(pid: int) -> bool:
    """Returns whether a process with this id exists.

    The system may have reused the id of a dead process. A server then merely runs for its grace
    period, so a stricter check isn't worthwhile.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
