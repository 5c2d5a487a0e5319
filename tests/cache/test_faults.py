"""A real server that dies, hangs, fills up or refuses, under load: no request fails or waits long.

What stands for the Embedder is a fake that is always there; so only the cache can be at fault.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.codec import Codec
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.redis_store import RedisStore
from serve_app.metrics import Meter
from serve_app.types import TextGroup, Tier
from serve_app.valkey.client import connect
from tests.fakes import DIM, FakeBackend, fake_vector
from tests.valkey_server import ValkeyProcess

TIMEOUT_S = 0.05
#: A bound that holds on a busy machine too; what matters is that nobody waits for the server.
PATIENCE_S = 2.0
BACK_S = 5.0
PASSWORD = "right"


class Load:
    """Eight clients without memory of their own, so that each known text comes from the server."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.answered = 0
        self.slowest_s = 0.0
        self.failures: list[str] = []
        self.hit_at = 0.0
        self._number = 0

    def lookup(self) -> Lookup:
        fetch = FakeBackend().embed
        return Lookup("space", Codec(DIM), MemoryCache(0), fetch, store=self._store)

    async def client(self) -> None:
        lookup = self.lookup()
        while True:
            self._number += 1
            texts = (f"new {self._number}", *(f"known {i}" for i in range(8)))
            started = time.monotonic()
            try:
                found = await lookup.embed(TextGroup(texts))
            except Exception as error:
                self.failures.append(repr(error))
                continue
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
            expected = np.stack([fake_vector(text) for text in texts])
            if found.values.tobytes() != expected.tobytes():
                self.failures.append(f"wrong vectors for {texts}")
            if found.tiers.tolist()[1:] == [Tier.L2] * 8:
                self.hit_at = time.monotonic()
            self.answered += 1
            await asyncio.sleep(0.001)

    async def run(self, seconds: float) -> None:
        """Lets them ask for so long, and many times at that."""
        until, goal = time.monotonic() + seconds, self.answered + 100
        async with asyncio.timeout(30):
            while time.monotonic() < until or self.answered < goal:
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


async def hits(load: Load) -> None:
    """Waits until everything known comes from the server again."""
    since = time.monotonic()
    async with asyncio.timeout(BACK_S + PATIENCE_S):
        while load.hit_at < since:
            await asyncio.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> ValkeyProcess:
    return ValkeyProcess(tmp_path, password=PASSWORD, enable_debug_command="local")


def change_password(server: ValkeyProcess, password: str) -> None:
    server.call("CONFIG", "SET", "requirepass", password)
    server.password = password
    server.call("CLIENT", "KILL", "TYPE", "normal")


def nothing(server: ValkeyProcess) -> None:
    """It mends itself."""


Fault = Callable[[ValkeyProcess], object]
FAULTS: list[tuple[str, Fault, Fault]] = [
    ("kill -9, started again on its port", ValkeyProcess.kill, ValkeyProcess.start),
    ("SIGSTOP for 5 s", ValkeyProcess.freeze, ValkeyProcess.thaw),
    ("CLIENT PAUSE", lambda s: s.call("CLIENT", "PAUSE", 3000, "ALL"), nothing),
    (
        "maxmemory 1mb, nothing may go",
        lambda s: s.call("CONFIG", "SET", "maxmemory", "1mb"),
        lambda s: s.call("CONFIG", "SET", "maxmemory", "0"),
    ),
    (
        "a read-only replica",
        lambda s: s.call("REPLICAOF", "127.0.0.1", 1),
        lambda s: s.call("REPLICAOF", "NO", "ONE"),
    ),
    ("all forgotten", lambda s: s.call("FLUSHALL"), nothing),
    ("all clients thrown out", lambda s: s.call("CLIENT", "KILL", "TYPE", "normal"), nothing),
    ("busy for a second", lambda s: s.call("DEBUG", "SLEEP", 1), nothing),
    (
        "another password",
        lambda s: change_password(s, "other"),
        lambda s: change_password(s, PASSWORD),
    ),
]


@pytest.mark.parametrize(("fault", "mend"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
async def test_no_request_fails_or_waits(server: ValkeyProcess, fault: Fault, mend: Fault) -> None:
    with server:
        async with load_on(server) as load:
            await hits(load)
            await asyncio.to_thread(fault, server)
            await load.run(5.0 if fault is ValkeyProcess.freeze else 1.0)
            await asyncio.to_thread(mend, server)
            await hits(load)
        assert load.failures == []
        assert load.slowest_s < PATIENCE_S


async def test_a_server_that_is_not_there_yet(server: ValkeyProcess) -> None:
    async with load_on(server) as load:
        await load.run(1.0)
        assert load.hit_at == 0
        with server:
            await hits(load)
    assert load.failures == []
    assert load.slowest_s < PATIENCE_S


async def test_the_wrong_password_until_it_is_mended(server: ValkeyProcess) -> None:
    with server:
        async with load_on(server, password="wrong") as load:
            await load.run(1.0)
            assert load.hit_at == 0
            server.call("CONFIG", "SET", "requirepass", "wrong")
            server.password = "wrong"
            await hits(load)
        assert load.failures == []
        assert load.slowest_s < PATIENCE_S
