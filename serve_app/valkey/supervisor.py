"""Runs one cache server: `python -m serve_app.valkey.supervisor DIRECTORY OWNER_PID BINARY`.

The supervisor is a daemon, not a child of a replica, so that the server survives a crash of the
replica that started it. It restarts the server when it dies and stops it when it is unused.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serve_app.parent_death import die_with_parent
from serve_app.valkey.server_dir import (
    FileLock,
    ServerDir,
    pid_exists,
    servers_lock,
)

#: How long a server may take to save its data before it is killed; the previous dump then stays.
SHUTDOWN_TIMEOUT_S = 10.0
#: How often a supervisor checks its server and whether it is used.
CHECK_EVERY_S = 0.5
#: Cached vectors have a time to live. The totals of the ledger have none, and are never evicted.
EVICTION_POLICY = "volatile-lfu"
_MODULE = "serve_app.valkey.supervisor"
_LOCK_TIMEOUT_S = 2.0
_MAX_FAILURES = 5
#: A server that ran for this long started successfully: its end begins a new count of failures.
_STABLE_AFTER_S = 10.0
_INITIAL_BACKOFF_S = 0.1
_CONFIG = {
    "port": "0",
    "unixsocketperm": "700",
    "maxmemory-policy": EVICTION_POLICY,
    "databases": "1",
    "save": "300 100 3600 1",
    # The floats of a vector don't compress.
    "rdbcompression": "no",
    # A full disk must block neither writes nor the shutdown.
    "stop-writes-on-bgsave-error": "no",
    "shutdown-on-sigterm": "save force",
    "loglevel": "warning",
}


def supervisor_command(directory: Path, owner_pid: int, binary: Path) -> list[str]:
    """Returns the command line that starts a supervisor for a server directory."""
    return [sys.executable, "-m", _MODULE, str(directory), str(owner_pid), str(binary)]


def parse_owner_pid(command_line: Sequence[str]) -> int | None:
    """Returns the owner's pid in a supervisor's command line; None for other programs."""
    at = list(command_line).index(_MODULE) if _MODULE in command_line else len(command_line)
    with suppress(IndexError, ValueError):
        return int(command_line[at + 2])
    return None


class _SupervisorError(Exception):
    """The server can't be kept running."""


class _ServerProcess:
    """The server's process, restarted with exponential backoff."""

    def __init__(self, server_dir: ServerDir, binary: str) -> None:
        self._server_dir = server_dir
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._started_at = 0.0
        self._restart_at = 0.0

    def ensure_running(self) -> None:
        """Starts the process if it isn't running and its backoff is over.

        Raises:
            _SupervisorError: it has failed too often in a row.
        """
        if self._process is not None and (status := self._process.poll()) is not None:
            self._process = None
            self._record_exit(status)
        if self._process is None and time.monotonic() >= self._restart_at:
            self._start()

    def stop(self) -> None:
        """Stops the process, which saves its data first."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log(f"The server did not stop within {SHUTDOWN_TIMEOUT_S:.0f} s and is killed.")
            self._process.kill()
            self._process.wait()

    def _record_exit(self, status: int) -> None:
        _log(f"The server exited with status {status}.")
        now = time.monotonic()
        was_stable = now - self._started_at > _STABLE_AFTER_S
        self._failures = 1 if was_stable else self._failures + 1
        if self._failures > _MAX_FAILURES:
            raise _SupervisorError(f"The server has failed {self._failures} times in a row.")
        self._restart_at = now + _INITIAL_BACKOFF_S * 2 ** (self._failures - 1)
        # The server exits with status 1 if it can't read its dump, and may also crash on it.
        if (status == 1 or self._failures > 2) and self._server_dir.dump.exists():
            self._server_dir.dump.replace(self._server_dir.path / "dump.rdb.broken")
            self._restart_at = now
            _log("Its data may be corrupt: it is moved to dump.rdb.broken, and it starts empty.")

    def _start(self) -> None:
        record = self._server_dir.read_record()
        if record is None:
            raise _SupervisorError("owner.json can't be read.")
        for partial_dump in self._server_dir.path.glob("temp-*.rdb"):
            partial_dump.unlink()
        config = _CONFIG | {
            "dir": str(self._server_dir.path),
            "unixsocket": record.options.socket,
            "maxmemory": str(record.options.max_bytes),
        }
        arguments = [word for name, value in config.items() for word in (f"--{name}", value)]
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            [self._binary, *arguments],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )


class _UsageMonitor:
    """Decides when the server is no longer needed."""

    def __init__(self, server_dir: ServerDir, owner_pid: int) -> None:
        self._servers_lock = servers_lock(server_dir.path.parent)
        self._server_dir = server_dir
        self._owner_pid = owner_pid
        self._unused_since: float | None = None
        self.lease_lock = server_dir.lease_lock()

    def lock_if_unused(self) -> bool:
        """Returns whether the server is no longer needed.

        The lease lock is then held exclusively, so that new replicas wait until the server has
        stopped.
        """
        if not self._servers_lock.try_exclusive():
            return False  # a replica is choosing a server, maybe this one
        try:
            if not self.lease_lock.try_exclusive():
                self._unused_since = None
                return False
            if self._is_grace_over():
                return True
            self.lease_lock.release()
            return False
        finally:
            self._servers_lock.release()

    def _is_grace_over(self) -> bool:
        now = time.monotonic()
        if self._unused_since is None:
            self._unused_since = now
        record = self._server_dir.read_record()
        grace_s = record.options.grace_s if record else 0.0
        return now - self._unused_since > grace_s or not pid_exists(self._owner_pid)


def main(directory: str, owner_pid: int, binary: str) -> None:
    """Starts a daemon that runs the server of a directory, and returns.

    Raises:
        TimeoutError: the directory already has a supervisor.
    """
    server_dir = ServerDir(Path(directory))
    supervisor_lock = server_dir.supervisor_lock()
    supervisor_lock.acquire_exclusive(time.monotonic() + _LOCK_TIMEOUT_S)
    # The child inherits the lock. Its parent exits, so it is in no process tree that Ray kills.
    if os.fork() == 0:
        os.chdir(directory)
        _supervise(server_dir, owner_pid, binary, supervisor_lock)


def _supervise(
    server_dir: ServerDir, owner_pid: int, binary: str, supervisor_lock: FileLock
) -> None:
    wakeup_fd, terminations = _handle_signals()
    usage = _UsageMonitor(server_dir, owner_pid)
    server = _ServerProcess(server_dir, binary)
    try:
        _stop_orphan(server_dir)
        while not (terminations or usage.lock_if_unused()):
            server.ensure_running()
            if select.select([wakeup_fd], [], [], CHECK_EVERY_S)[0]:
                os.read(wakeup_fd, 64)
    except (_SupervisorError, OSError) as error:
        _log(f"{error} The supervisor gives up.")
    finally:
        usage.lease_lock.try_exclusive()  # held already if the server is unused
        server.stop()
        _remove_socket(server_dir)
        supervisor_lock.close()
        # Release last: a replica that waits for this lock must not find a supervisor.
        usage.lease_lock.close()


def _handle_signals() -> tuple[int, list[int]]:
    """Returns a descriptor that is readable after a signal, and a list of received SIGTERMs."""
    terminations: list[int] = []
    wakeup_fd, signal_fd = os.pipe()
    os.set_blocking(signal_fd, False)
    signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: terminations.append(number))
    return wakeup_fd, terminations


def _stop_orphan(server_dir: ServerDir) -> None:
    """Stops a server whose supervisor was killed; two would share one dump and one socket."""
    record = server_dir.read_record()
    deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
    while record is not None:
        try:
            server_dir.send_command(record.options.socket, "SHUTDOWN SAVE FORCE")
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError:
            pass  # it is running, and busy saving its data
        if time.monotonic() > deadline:
            raise _SupervisorError("An orphaned server doesn't stop.")
        time.sleep(_INITIAL_BACKOFF_S)


def _remove_socket(server_dir: ServerDir) -> None:
    record = server_dir.read_record()
    if record is not None:
        socket_path = Path(record.options.socket)
        with suppress(OSError):
            socket_path.unlink(missing_ok=True)
            if socket_path.parent != server_dir.path:
                socket_path.parent.rmdir()


def _log(message: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
