"""A real server that dies, hangs, fills up or refuses under load: no request fails or waits long.

The next tier is a fake that always works, so only the cache can cause a failure.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.codec import task_codecs
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.redis_store import RedisStore
from serve_app.metrics import Meter
from serve_app.types import TextGroup, Tier
from serve_app.valkey.client import connect
from tests.fakes import SPEC, FakeBackend, as_vectors, coalesce, fake_vector
from tests.valkey_server import ValkeyProcess

TIMEOUT_S = 0.05
#: Limit of a request that doesn't wait for the server, on a busy machine.
MAX_LATENCY_S = 2.0
RECOVERY_S = 5.0
PASSWORD = "right"


class Load:
    """Clients without an L1, so that each known text is read from the server."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.completed = 0
        self.slowest_s = 0.0
        self.failures: list[str] = []
        self.last_hit_at = 0.0
        self._requests = 0

    def lookup(self) -> Lookup:
        next_tier = coalesce(FakeBackend().run)
        return Lookup("space", task_codecs(SPEC), MemoryCache(0), next_tier, store=self._store)

    async def client(self) -> None:
        lookup = self.lookup()
        while True:
            self._requests += 1
            texts = (f"new {self._requests}", *(f"known {i}" for i in range(8)))
            started = time.monotonic()
            try:
                vectors = as_vectors(await lookup.run(TextGroup(texts)))
            except Exception as error:
                self.failures.append(repr(error))
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            expected = np.stack([fake_vector(text) for text in texts])
            if vectors.values.tobytes() != expected.tobytes():
                self.failures.append(f"wrong vectors for {texts}")
            if vectors.tiers.tolist()[1:] == [Tier.L2] * 8:
                self.last_hit_at = time.monotonic()
            self.completed += 1
            await asyncio.sleep(0.001)

    async def run(self, seconds: float) -> None:
        """Runs for a time, and for at least 100 more requests."""
        end, goal = time.monotonic() + seconds, self.completed + 100
        async with asyncio.timeout(30):
            while time.monotonic() < end or self.completed < goal:
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
    clients = [asyncio.create_task(load.client()) for _ in range(8)]
    try:
        yield load
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await store.close()


async def wait_for_hits(load: Load) -> None:
    """Waits until all known texts are read from the server again."""
    since = time.monotonic()
    async with asyncio.timeout(RECOVERY_S + MAX_LATENCY_S):
        while load.last_hit_at < since:
            await asyncio.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> ValkeyProcess:
    return ValkeyProcess(tmp_path, password=PASSWORD, enable_debug_command="local")


def change_password(server: ValkeyProcess, password: str) -> None:
    server.call("CONFIG", "SET", "requirepass", password)
    server.password = password
    server.call("CLIENT", "KILL", "TYPE", "normal")


def nothing(server: ValkeyProcess) -> None:
    """Repairs a fault that ends on its own."""


Fault = Callable[[ValkeyProcess], object]
FAULTS: list[tuple[str, Fault, Fault]] = [
    ("kill -9, then a restart on the same port", ValkeyProcess.kill, ValkeyProcess.start),
    ("SIGSTOP for 5 s", ValkeyProcess.freeze, ValkeyProcess.thaw),
    ("CLIENT PAUSE", lambda s: s.call("CLIENT", "PAUSE", 3000, "ALL"), nothing),
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
    ("DEBUG SLEEP", lambda s: s.call("DEBUG", "SLEEP", 1), nothing),
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
            await wait_for_hits(load)
            await asyncio.to_thread(fault, server)
            await load.run(5.0 if fault is ValkeyProcess.freeze else 1.0)
            await asyncio.to_thread(repair, server)
            await wait_for_hits(load)
        assert load.failures == []
        assert load.slowest_s < MAX_LATENCY_S


async def test_a_server_may_start_later(server: ValkeyProcess) -> None:
    async with load_on(server) as load:
        await load.run(1.0)
        assert load.last_hit_at == 0
        with server:
            await wait_for_hits(load)
    assert load.failures == []
    assert load.slowest_s < MAX_LATENCY_S


async def test_a_wrong_password_may_be_corrected(server: ValkeyProcess) -> None:
    with server:
        async with load_on(server, password="wrong") as load:
            await load.run(1.0)
            assert load.last_hit_at == 0
            server.call("CONFIG", "SET", "requirepass", "wrong")
            server.password = "wrong"
            await wait_for_hits(load)
        assert load.failures == []
        assert load.slowest_s < MAX_LATENCY_S
