"""A real server that dies, hangs, fills up or refuses under load: no request fails or waits long.

The next tier is a fake that always works, so only the cache can cause a failure.
"""

import asyncio
import contextlib
import operator
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.codec import task_codecs
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.redis_store import RedisStore
from serve_app.meter import Meter
from serve_app.types import TextGroup, Tier
from serve_app.valkey.client import connect
from tests.fakes import SPEC, FakeBackend, as_vectors, coalesce, fake_vector
from tests.valkey_server import ValkeyProcess

TIMEOUT_S = 0.05
#: Far more than anything here needs on a busy machine.
LIMIT_S = 30
#: A fault that ends on its own outlasts the limit: requests that wait for its end exceed it.
FAULT_S = 10 * LIMIT_S
CLIENTS = 8
PASSWORD = "right"


class Load:
    """Clients without an L1, so that each known text is read from the server."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.completed = [0] * CLIENTS
        self.failures: list[str] = []
        self.hits = 0  #: requests whose known texts were all read from the server
        self._requests = 0

    def lookup(self) -> Lookup:
        next_tier = coalesce(FakeBackend().run)
        return Lookup("space", task_codecs(SPEC), MemoryCache(0), next_tier, store=self._store)

    async def client(self, number: int) -> None:
        lookup = self.lookup()
        while True:
            self._requests += 1
            texts = (f"new {self._requests}", *(f"known {i}" for i in range(8)))
            try:
                vectors = as_vectors(await lookup.run(TextGroup(texts)))
            except Exception as error:
                self.failures.append(repr(error))
                continue
            expected = np.stack([fake_vector(text) for text in texts])
            if vectors.values.tobytes() != expected.tobytes():
                self.failures.append(f"wrong vectors for {texts}")
            if vectors.tiers.tolist()[1:] == [Tier.L2] * 8:
                self.hits += 1
            self.completed[number] += 1
            await asyncio.sleep(0.001)

    async def run(self, seconds: float) -> None:
        """Runs for a time, and until each client has completed many more requests.

        Fails if a client's requests take more than a second on average.
        """
        goals = [completed + LIMIT_S for completed in self.completed]
        async with asyncio.timeout(LIMIT_S):
            await asyncio.sleep(seconds)
            while any(map(operator.lt, self.completed, goals)):
                await asyncio.sleep(0.01)

    async def wait_for_hits(self) -> None:
        """Waits until all known texts are read from the server again."""
        before = self.hits
        async with asyncio.timeout(LIMIT_S):
            # Those before may be of requests that were read before a fault.
            while self.hits <= before + CLIENTS:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def load_on(server: ValkeyProcess, password: str | None = PASSWORD) -> AsyncIterator[Load]:
    store = RedisStore(
        connect(server.url, password, TIMEOUT_S),
        prefix=b"test:",
        timeout_s=TIMEOUT_S,
        ttl_s=60,
        write_queue_max_bytes=1 << 20,
        meter=Meter(),
    )
    store.start()
    load = Load(store)
    clients = [asyncio.create_task(load.client(i)) for i in range(CLIENTS)]
    try:
        yield load
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await store.close()


@pytest.fixture
def server(tmp_path: Path) -> ValkeyProcess:
    return ValkeyProcess(tmp_path, password=PASSWORD, enable_debug_command="local")


def change_password(server: ValkeyProcess, password: str) -> None:
    server.call("CONFIG", "SET", "requirepass", password)
    server.password = password
    server.call("CLIENT", "KILL", "TYPE", "normal")


def sleep(server: ValkeyProcess) -> None:
    """Makes the server execute a command that takes long, without waiting for its reply."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"AUTH {PASSWORD}\r\n".encode())
        assert connection.recv(5) == b"+OK\r\n"
        connection.sendall(f"DEBUG SLEEP {FAULT_S}\r\n".encode())


def restart(server: ValkeyProcess) -> None:
    server.kill()
    server.start()


def nothing(server: ValkeyProcess) -> None:
    """Repairs a fault that ends at once."""


Fault = Callable[[ValkeyProcess], object]
FAULTS: list[tuple[str, Fault, Fault]] = [
    ("kill -9, then a restart on the same port", ValkeyProcess.kill, ValkeyProcess.start),
    ("SIGSTOP for 5 s", ValkeyProcess.freeze, ValkeyProcess.thaw),
    ("CLIENT PAUSE", lambda s: s.call("CLIENT", "PAUSE", FAULT_S * 1000, "ALL"), restart),
    (
        "maxmemory 1mb without eviction",
        lambda s: s.call("CONFIG", "SET", "maxmemory", "1mb"),
        lambda s: s.call("CONFIG", "SET", "maxmemory", "0"),
    ),
    (
        "a read-only replica",
        lambda s: s.call("REPLICAOF", "127.0.0.1", 1),
        lambda s: s.call("REPLICAOF", "NO", "ONE"),
    ),
    ("FLUSHALL", lambda s: s.call("FLUSHALL"), nothing),
    ("CLIENT KILL", lambda s: s.call("CLIENT", "KILL", "TYPE", "normal"), nothing),
    ("DEBUG SLEEP", sleep, restart),
    (
        "a changed password",
        lambda s: change_password(s, "other"),
        lambda s: change_password(s, PASSWORD),
    ),
]


@pytest.mark.parametrize(("fault", "repair"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
async def test_no_request_fails_or_waits(
    server: ValkeyProcess, fault: Fault, repair: Fault
) -> None:
    with server:
        async with load_on(server) as load:
            await load.wait_for_hits()
            await asyncio.to_thread(fault, server)
            await load.run(5.0 if fault is ValkeyProcess.freeze else 1.0)
            await asyncio.to_thread(repair, server)
            await load.wait_for_hits()
        assert load.failures == []


async def test_a_server_may_start_later(server: ValkeyProcess) -> None:
    async with load_on(server) as load:
        await load.run(1.0)
        assert load.hits == 0
        with server:
            await load.wait_for_hits()
    assert load.failures == []


async def test_a_wrong_password_may_be_corrected(server: ValkeyProcess) -> None:
    with server:
        async with load_on(server, password="wrong") as load:
            await load.run(1.0)
            assert load.hits == 0
            server.call("CONFIG", "SET", "requirepass", "wrong")
            server.password = "wrong"
            await load.wait_for_hits()
        assert load.failures == []
