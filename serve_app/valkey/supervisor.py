"""Runs one cache server: `python -m serve_app.valkey.supervisor FOLDER OWNER_PID BINARY`.

A process of its own that no replica is the parent of, so that the server outlives a replica's
crash. It starts the server again when it dies, and ends it when nobody needs it any more.
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

from serve_app.valkey.parent_death import die_with_parent
from serve_app.valkey.server_dir import (
    FileLock,
    ServerDir,
    ask,
    pid_exists,
    slots_lock,
    wait_exclusive,
)

#: How long a server may take to write its data down before it is killed. The dump of before stays.
SHUTDOWN_TIMEOUT_S = 10.0
_MODULE = "serve_app.valkey.supervisor"
_POLL_S = 0.5
_LOCK_S = 2.0
_FAILURES_MAX = 5
#: Who has run for that long has not failed to start.
_SETTLED_S = 10.0
_FIRST_PAUSE_S = 0.1
_CONFIG = {
    "port": "0",
    "unixsocketperm": "700",
    "maxmemory-policy": "allkeys-lfu",
    "databases": "1",
    "save": "300 100",
    # Numbers of a vector don't compress.
    "rdbcompression": "no",
    # A full disk must not stop the cache from caching, nor from ending.
    "stop-writes-on-bgsave-error": "no",
    "shutdown-on-sigterm": "save force",
    "loglevel": "warning",
}


def command(folder: Path, owner_pid: int, binary: Path) -> list[str]:
    """What to run for a supervisor of the slot in `folder`."""
    return [sys.executable, "-m", _MODULE, str(folder), str(owner_pid), str(binary)]


def parse_owner_pid(line: Sequence[str]) -> int | None:
    """The owner's pid in the command line of a supervisor; None: it is of another program."""
    at = list(line).index(_MODULE) if _MODULE in line else len(line)
    with suppress(IndexError, ValueError):
        return int(line[at + 2])
    return None


class _GivenUp(Exception):
    """The server doesn't stay alive."""


class _Server:
    """The server's process, kept alive."""

    def __init__(self, slot: ServerDir, binary: str) -> None:
        self._slot = slot
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._since = 0.0
        self._again_at = 0.0

    def keep_up(self) -> None:
        """Starts it when it isn't there, with a longer pause after each failure.

        Raises:
            _GivenUp: it has failed too often in a row.
        """
        if self._process is not None and (status := self._process.poll()) is not None:
            self._process = None
            self._note_failure(status)
        if self._process is None and time.monotonic() >= self._again_at:
            self._start()

    def end(self) -> None:
        """Ends it; it writes its data down first."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _say(f"The server did not end within {SHUTDOWN_TIMEOUT_S:.0f} s and is killed.")
            self._process.kill()
            self._process.wait()

    def _note_failure(self, status: int) -> None:
        _say(f"The server has ended with status {status}.")
        now = time.monotonic()
        self._failures = 1 if now - self._since > _SETTLED_S else self._failures + 1
        if self._failures > _FAILURES_MAX:
            raise _GivenUp(f"The server has failed {self._failures} times in a row.")
        self._again_at = now + _FIRST_PAUSE_S * 2 ** (self._failures - 1)
        # 1 is how it ends when it can't read its dump. It may also crash over it.
        if (status == 1 or self._failures > 2) and self._slot.dump.exists():
            self._slot.dump.replace(self._slot.folder / "dump.rdb.broken")
            self._again_at = now
            _say("Its data may be broken: they are in dump.rdb.broken now, and it starts empty.")

    def _start(self) -> None:
        about = self._slot.read()
        if about is None:
            raise _GivenUp("owner.json can't be read.")
        for torn in self._slot.folder.glob("temp-*.rdb"):
            torn.unlink()
        config = _CONFIG | {
            "dir": str(self._slot.folder),
            "unixsocket": about[1].socket,
            "maxmemory": str(about[1].max_bytes),
        }
        options = [word for name, value in config.items() for word in (f"--{name}", value)]
        self._since = time.monotonic()
        self._process = subprocess.Popen(
            [self._binary, *options],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )


class _Need:
    """Tells when nobody needs the server any more."""

    def __init__(self, slot: ServerDir, owner_pid: int) -> None:
        self._slots = slots_lock(slot.folder.parent)
        self._slot = slot
        self._owner_pid = owner_pid
        self._unused_since: float | None = None
        self.lease = slot.lease()

    def is_over(self) -> bool:
        """Whether it is over; from then on the lease is held, so that replicas wait for the end."""
        if not self._slots.try_exclusive():
            return False  # a replica is looking for a server: it may want this one
        try:
            if not self.lease.try_exclusive():
                self._unused_since = None
                return False
            if self._is_unused_for_long():
                return True
            self.lease.free()
            return False
        finally:
            self._slots.free()

    def _is_unused_for_long(self) -> bool:
        now = time.monotonic()
        if self._unused_since is None:
            self._unused_since = now
        about = self._slot.read()
        grace_s = about[1].grace_s if about else 0.0
        return now - self._unused_since > grace_s or not pid_exists(self._owner_pid)


def main(folder: str, owner_pid: int, binary: str) -> None:
    """Leaves a process behind that runs the server of a slot, and returns.

    Raises:
        TimeoutError: the slot has a supervisor.
    """
    slot = ServerDir(Path(folder))
    alone = slot.supervisor()
    wait_exclusive(alone, time.monotonic() + _LOCK_S)
    # The lock goes to the child, whose parent is nobody that anything of Ray would look at.
    if os.fork() == 0:
        os.chdir(folder)
        _supervise(slot, owner_pid, binary, alone)


def _supervise(slot: ServerDir, owner_pid: int, binary: str, alone: FileLock) -> None:
    wake, terminated = _on_signals()
    need = _Need(slot, owner_pid)
    server = _Server(slot, binary)
    try:
        _end_orphan(slot)
        while not (terminated or need.is_over()):
            server.keep_up()
            if select.select([wake], [], [], _POLL_S)[0]:
                os.read(wake, 64)
    except (_GivenUp, OSError) as error:
        _say(f"{error} It is given up.")
    finally:
        need.lease.try_exclusive()  # where it isn't held yet
        server.end()
        _leave(slot)
        alone.close()
        need.lease.close()  # last: who waits for it must not find a supervisor


def _on_signals() -> tuple[int, list[int]]:
    """A descriptor that is readable after a signal, and the ends that were asked for."""
    terminated: list[int] = []
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: terminated.append(number))
    return wake, terminated


def _end_orphan(slot: ServerDir) -> None:
    """Ends a server whose supervisor was killed; two would write one dump and one socket."""
    about = slot.read()
    deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
    while about is not None:
        try:
            ask(about[1].socket, "SHUTDOWN SAVE FORCE")
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError:
            pass  # it listens, and writes its data down
        if time.monotonic() > deadline:
            raise _GivenUp("A server that was left behind doesn't end.")
        time.sleep(_FIRST_PAUSE_S)


def _leave(slot: ServerDir) -> None:
    about = slot.read()
    if about is not None:
        place = Path(about[1].socket)
        with suppress(OSError):
            place.unlink(missing_ok=True)
            if place.parent != slot.folder:
                place.parent.rmdir()


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
