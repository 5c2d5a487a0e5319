import asyncio
import contextlib
import contextvars
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis

from serve_app.breaker import Breaker
from serve_app.cache.redis_store import RedisStore
from serve_app.errors import Unavailable
from serve_app.meter import Meter
from serve_app.metrics import L2_FAILURES, L2_WRITE_DROPS, L2_WRITTEN, LOOKUP_DURATION, Metric
from serve_app.valkey.client import Client, connect
from tests.valkey_server import ValkeyProcess

#: Far more than any operation in these tests needs.
LIMIT_S = 30
MODEL = "org/model"
REQUEST = contextvars.ContextVar("request", default="none")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey") as process:
        yield process


class Counts:
    """Sums up a store's metrics."""

    def __init__(self) -> None:
        self.meter = Meter()
        self._sums: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def __call__(self, metric: Metric, *tags: str) -> float:
        """Returns the metric's total."""
        for key, amount in self.meter.drain().items():
            self._sums[key] = self._sums.get(key, 0) + amount
        return self._sums.get((metric, tags), 0)


@contextlib.asynccontextmanager
async def opened(
    server: str | Client,
    password: str | None = None,
    *,
    prefix: bytes = b"test:",
    timeout_s: float = 10,  # no operation misses on a busy machine
    ttl_s: int | None = None,
    write_queue_max_bytes: int = 1 << 20,
    counts: Counts | None = None,
    breaker: Breaker | None = None,
    started: bool = True,
) -> AsyncIterator[RedisStore]:
    store = RedisStore(
        connect(server, password, timeout_s) if isinstance(server, str) else server,
        prefix=prefix,
        timeout_s=timeout_s,
        ttl_s=ttl_s,
        write_queue_max_bytes=write_queue_max_bytes,
        meter=(counts or Counts()).meter,
        breaker=breaker,
    )
    if started:
        store.start()
    try:
        yield store
    finally:
        await store.close()


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def fill(store: RedisStore, n: int, size: int = 8) -> list[bytes]:
    """Writes n values, each derived from its key, and returns the keys."""
    keys = [f"key {i}".encode() for i in range(n)]
    for key in keys:
        store.put(key, value(key, size), MODEL)
    await store.flush(LIMIT_S)
    return keys


def value(key: bytes, size: int = 8) -> bytes:
    return key.ljust(size, b".")


def calls(server: ValkeyProcess, command: str) -> int:
    return int(server.call("INFO", "commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


async def assert_misses(store: RedisStore, times: int) -> None:
    """Makes many consecutive reads: all are misses, and together they are fast."""
    async with asyncio.timeout(LIMIT_S):
        for _ in range(times):
            assert await store.get_many([b"key 0", b"key 1"]) == [None, None]


async def assert_recovers(store: RedisStore) -> None:
    """Waits until the store is up again, accepts writes and returns hits."""
    async with asyncio.timeout(LIMIT_S):
        await wait_until(lambda: store.state == "up")
        assert store.reason is None
        while await store.get_many([b"again"]) != [b"again"]:
            store.put(b"again", b"again", MODEL)
            await store.flush(LIMIT_S)


@pytest.mark.parametrize("kind", ["port", "socket", "password", "cluster", "sentinel"])
async def test_a_round_trip(kind: str, tmp_path: Path) -> None:
    password = "p/w@d" if kind == "password" else None
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(
            ValkeyProcess(
                tmp_path / "valkey",
                unix=kind == "socket",
                password=password,
                cluster=kind == "cluster",
            )
        )
        url = server.url
        if kind == "sentinel":
            sentinel = servers.enter_context(
                ValkeyProcess(tmp_path / "sentinel", sentinel_of=server)
            )
            url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0"
        counts = Counts()
        async with opened(url, password, counts=counts) as store:
            keys = await fill(store, 600, 1500)
            values = await store.get_many([*keys, b"unknown", keys[0]])
            assert values == [*(value(key, 1500) for key in keys), None, value(keys[0], 1500)]
            assert await store.get_many([]) == []
            assert await store.purge(b"") == 600
            assert await store.get_many(keys[:2]) == [None, None]
            assert (store.state, store.writable, store.reason) == ("up", True, None)
        assert counts(L2_WRITTEN, MODEL) == 600
        reads = counts.meter.histograms()[LOOKUP_DURATION, ("l2",)]
        assert reads.count == 2
        assert reads.sum > 0


def test_it_works_on_uvloop(server: ValkeyProcess) -> None:
    async def round_trip() -> None:
        async with opened(server.url) as store:
            [key] = await fill(store, 1)
            assert await store.get_many([key]) == [value(key)]
            server.kill()
            await assert_misses(store, 50)
            server.start()
            await assert_recovers(store)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(round_trip())


TEN_YEARS = range(9 * 366 * 24 * 3600, 11 * 365 * 24 * 3600)


@pytest.mark.parametrize(("ttl_s", "expected"), [(1000, range(990, 1001)), (None, TEN_YEARS)])
async def test_values_have_the_configured_ttl(
    server: ValkeyProcess, ttl_s: int | None, expected: Sequence[int]
) -> None:
    """Without one they have the longest: only keys that expire are evicted, and not totals."""
    async with opened(server.url, ttl_s=ttl_s) as store:
        [key] = await fill(store, 1)
    assert server.call("TTL", b"test:" + key) in expected


async def test_reads_of_one_turn_are_sent_as_one_mget(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        keys = await fill(store, 50)
        server.call("CONFIG", "RESETSTAT")
        values = await asyncio.gather(*(store.get_many([key, b"unknown"]) for key in keys))
        assert values == [[value(key), None] for key in keys]
        assert calls(server, "mget") == 1


async def test_a_large_read_is_split_and_separate_from_small_ones(
    server: ValkeyProcess,
) -> None:
    async with opened(server.url) as store:
        keys = await fill(store, 1300)
        server.call("CONFIG", "RESETSTAT")
        small, large = await asyncio.gather(store.get_many(keys[:1]), store.get_many(keys))
        assert small == [value(keys[0])]
        assert large == [value(key) for key in keys]
        assert calls(server, "mget") == 4


async def test_a_new_connection_sends_nothing_but_the_command(server: ValkeyProcess) -> None:
    server.call("CONFIG", "RESETSTAT")
    async with opened(server.url) as store:
        await fill(store, 1)
    commands = set(server.call("INFO", "commandstats"))
    assert commands - {"cmdstat_mget", "cmdstat_set"} == {"cmdstat_config|resetstat"}


async def test_a_cancelled_read_does_not_affect_others(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        keys = await fill(store, 2)
        for turns in range(6):
            cancelled, other = (asyncio.ensure_future(store.get_many([key])) for key in keys)
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled.cancel()
            assert await other == [value(keys[1])]
            with contextlib.suppress(asyncio.CancelledError):
                await cancelled


async def test_shared_reads_run_outside_the_context_of_a_request() -> None:
    contexts = []

    class RecordingRedis(Redis):
        async def mget(self, *keys: Any) -> list[Any]:
            contexts.append(REQUEST.get())
            return [None]

    async with opened(RecordingRedis(), started=False) as store:
        REQUEST.set("a request")
        await store.get_many([b"a"])
    assert contexts == ["none"]


@pytest.mark.parametrize("kind", ["port", "cluster"])
async def test_replies_are_never_mixed_up(kind: str, tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path / "valkey", cluster=kind == "cluster") as server:
        url = server.url
        async with opened(url) as store:
            keys = await fill(store, 200, 3000)
        await hammer(server, url, keys)
        async with opened(url) as store:
            assert await store.get_many(keys) == [value(key, 3000) for key in keys]


async def hammer(server: ValkeyProcess, url: str, keys: list[bytes]) -> None:
    """Makes many reads with a tiny timeout, of which many are cancelled and many time out."""
    counts = Counts()
    rng = random.Random(1)
    breaker = Breaker(max_failures=1_000_000)
    async with opened(url, timeout_s=0.005, counts=counts, breaker=breaker) as store:

        async def client() -> int:
            hits = 0
            for _ in range(100):
                sample = rng.sample(keys, rng.randint(1, 40))
                read = asyncio.ensure_future(store.get_many(sample))
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * 0.004)
                    read.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    for key, got in zip(sample, await read, strict=True):
                        assert got in (None, value(key, 3000))
                        hits += got is not None
            return hits

        async def stutter() -> None:
            while True:
                server.freeze()
                await asyncio.sleep(0.008)
                server.thaw()
                await asyncio.sleep(0.008)

        stuttering = asyncio.create_task(stutter())
        try:
            hits = 0
            for _ in range(10):  # on a busy machine, a round may have no hits
                hits += sum(await asyncio.gather(*(client() for _ in range(8))))
                if hits and counts(L2_FAILURES, "timeout") > 10:
                    break
        finally:
            stuttering.cancel()
            server.thaw()
    assert hits > 0
    assert counts(L2_FAILURES, "timeout") > 10


@pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_busy_event_loop_does_not_make_the_store_slow(
    server: ValkeyProcess, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def read_and_block() -> None:
        async with opened(server.url, timeout_s=0.3) as store:
            keys = await fill(store, 30, 1500)
            await store.get_many(keys)
            reads = calls(server, "mget")
            server.freeze()
            read = asyncio.ensure_future(store.get_many(keys))
            for _ in range(100):  # until it is sent
                await asyncio.sleep(0)
            server.thaw()
            time.sleep(0.6)  # noqa: ASYNC251
            while calls(server, "mget") == reads:  # until the reply is on its way
                time.sleep(0.01)  # noqa: ASYNC251
            assert await read == [value(key, 1500) for key in keys]

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(read_and_block())


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("fault", ["killed", "frozen", "paused"])
async def test_a_lost_server_costs_little_and_recovers(
    fault: str, unix: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serve_app")
    counts = Counts()
    with ValkeyProcess(tmp_path / "valkey", unix=unix) as server:
        async with opened(server.url, timeout_s=0.05, counts=counts) as store:
            await assert_recovers(store)
            if fault == "killed":
                server.kill()
            elif fault == "frozen":
                server.freeze()
            else:
                server.call("CLIENT", "PAUSE", 3000, "ALL")
            store.put(b"lost", b"lost", MODEL)
            await assert_misses(store, 500)
            assert store.state == "down"
            # While the breaker is open, only probes fail.
            failures = sum(counts(L2_FAILURES, kind) for kind in ("timeout", "connection"))
            assert 1 <= failures < 20
            if fault == "killed":
                server.start()
            elif fault == "frozen":
                server.thaw()
            await assert_recovers(store)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "is down" in messages[0]
    assert "up again" in messages[1]


async def test_concurrent_reads_time_out_together(server: ValkeyProcess) -> None:
    breaker = Breaker(max_failures=1000)
    async with opened(server.url, timeout_s=1, breaker=breaker) as store:
        await fill(store, 1)
        server.freeze()
        reads = []
        for _ in range(100):
            reads.append(asyncio.ensure_future(store.get_many([b"key 0"])))
            await asyncio.sleep(0)
        # They wait concurrently for connections and replies. One after the other, on a few
        # connections, they would take longer than the limit.
        async with asyncio.timeout(LIMIT_S):
            assert await asyncio.gather(*reads) == [[None]] * 100
        server.thaw()
        await assert_recovers(store)


async def test_a_cluster_recovers(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path / "valkey", cluster=True) as server:
        async with opened(server.url) as store:
            await fill(store, 2)
            server.kill()
            await assert_misses(store, 50)
            assert store.state == "down"
            server.start()
            await assert_recovers(store)


async def test_a_server_may_start_later(tmp_path: Path) -> None:
    server = ValkeyProcess(tmp_path / "valkey")
    counts = Counts()
    async with opened(server.url, counts=counts) as store:
        await wait_until(lambda: store.state == "down")
        assert store.reason is not None
        assert store.reason.startswith("no connection (")
        await assert_misses(store, 20)
        with server:
            await assert_recovers(store)
    assert counts(L2_FAILURES, "connection") > 0


@pytest.mark.parametrize("unix", [False, True])
async def test_a_wrong_password_is_reported_and_may_be_corrected(
    unix: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = Counts()
    with ValkeyProcess(tmp_path / "valkey", unix=unix, password="right") as server:
        async with opened(server.url, "secret-word", counts=counts) as store:
            await wait_until(lambda: store.state == "down")
            assert store.reason == "its user or password is not accepted"
            await assert_misses(store, 20)
            server.call("CONFIG", "SET", "requirepass", "secret-word")
            await assert_recovers(store)
    assert counts(L2_FAILURES, "auth") > 0
    assert "secret-word" not in caplog.text


async def test_a_full_server_still_answers(server: ValkeyProcess) -> None:
    counts = Counts()
    async with opened(server.url, counts=counts) as store:
        keys = await fill(store, 3)
        server.call("CONFIG", "SET", "maxmemory", "1mb")
        store.put(b"new", b"new" * 1000, MODEL)
        await store.flush(LIMIT_S)
        assert counts(L2_WRITE_DROPS, "refused", MODEL) == 1
        assert await store.get_many([*keys, b"new"]) == [*map(value, keys), None]
        assert store.state == "up"
        assert not store.writable
        assert store.reason == "writes fail: it answers OOM"

        server.call("CONFIG", "SET", "maxmemory", 0)
        await wait_until(lambda: store.writable)  # without any write
        store.put(b"new", b"new", MODEL)
        await store.flush(LIMIT_S)
        assert await store.get_many([b"new"]) == [b"new"]
        assert store.reason is None


async def test_a_read_only_server_still_answers(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        keys = await fill(store, 1)
        server.call("REPLICAOF", "127.0.0.1", 1)
        store.put(b"new", b"new", MODEL)
        await wait_until(lambda: not store.writable)
        assert await store.get_many(keys) == [value(keys[0])]
        assert store.reason == "writes fail: it answers READONLY"


async def test_a_refused_write_does_not_affect_others(server: ValkeyProcess) -> None:
    server.call("ACL", "SETUSER", "default", "resetkeys", "~test:yes*", "%R~*")
    counts = Counts()
    async with opened(server.url, counts=counts) as store:
        for key in (b"yes 1", b"no", b"yes 2"):
            store.put(key, key, MODEL)
        await store.flush(LIMIT_S)
        assert await store.get_many([b"yes 1", b"no", b"yes 2"]) == [b"yes 1", None, b"yes 2"]
    assert counts(L2_WRITTEN, MODEL) == 2
    assert counts(L2_WRITE_DROPS, "refused", MODEL) == 1


async def test_the_write_queue_is_bounded_and_holds_a_key_once(server: ValkeyProcess) -> None:
    counts = Counts()
    async with opened(
        server.url, counts=counts, write_queue_max_bytes=1000, started=False
    ) as store:
        store.put(b"twice", b"old", MODEL)
        store.put(b"twice", b"new", MODEL)
        for i in range(20):
            store.put(b"%02d" % i, b"." * 98, MODEL)
        store.put(b"huge", b"." * 1000, MODEL)
        store.start()
        await store.flush(LIMIT_S)
        assert counts(L2_WRITTEN, MODEL) == 1 + 9
        assert counts(L2_WRITE_DROPS, "full", MODEL) == 11 + 1
        assert await store.get_many([b"twice", b"08", b"09"]) == [b"new", b"." * 98, None]
        store.put(b"huge", b"." * 900, MODEL)
        await store.flush(LIMIT_S)
        assert counts(L2_WRITTEN, MODEL) == 11


async def test_writes_are_counted_by_model(server: ValkeyProcess) -> None:
    server.call("ACL", "SETUSER", "default", "resetkeys", "~test:yes*", "%R~*")
    counts = Counts()
    async with opened(server.url, counts=counts) as store:
        for key, model in ((b"yes 1", "a"), (b"yes 2", "b"), (b"yes 3", "b"), (b"no", "b")):
            store.put(key, key, model)
        await store.flush(LIMIT_S)
    assert [counts(L2_WRITTEN, model) for model in ("a", "b")] == [1, 2]
    assert [counts(L2_WRITE_DROPS, "refused", model) for model in ("a", "b")] == [0, 1]


async def test_queued_writes_for_a_dead_server_are_dropped(tmp_path: Path) -> None:
    counts = Counts()
    server = ValkeyProcess(tmp_path / "valkey")
    async with opened(server.url, counts=counts, started=False) as store:
        for i in range(10):
            store.put(b"%d" % i, b"", MODEL)
        await assert_misses(store, 10)
        assert store.state == "down"
        store.put(b"later", b"", MODEL)
        assert counts(L2_WRITE_DROPS, "down", MODEL) == 11
        with server:
            store.start()
            await store.flush(LIMIT_S)
            await wait_until(lambda: store.state == "up")
            assert server.call("DBSIZE") == 0


async def test_writes_alone_detect_a_lost_server(server: ValkeyProcess) -> None:
    counts = Counts()
    async with opened(server.url, timeout_s=0.05, counts=counts) as store:
        await assert_recovers(store)
        server.freeze()
        store.put(b"lost", b"lost", MODEL)
        await wait_until(lambda: store.state == "down")
        assert counts(L2_WRITE_DROPS, "timeout", MODEL) == 1
        assert store.writable
        server.thaw()
        await assert_recovers(store)


async def test_reads_work_while_writes_hang(server: ValkeyProcess) -> None:
    async with opened(server.url, timeout_s=0.1) as store:
        await assert_recovers(store)
        server.call("CLIENT", "PAUSE", 60_000, "WRITE")
        store.put(b"lost", b"lost", MODEL)
        await wait_until(lambda: not store.writable)
        assert store.state == "up"
        assert store.reason == "writes fail: no answer in time"
        async with asyncio.timeout(LIMIT_S):
            while await store.get_many([b"again"]) != [b"again"]:
                pass
        server.call("CLIENT", "UNPAUSE")


async def test_values_are_read_while_they_are_queued_and_being_written(
    server: ValkeyProcess,
) -> None:
    async with opened(server.url) as store:
        [stored] = await fill(store, 1)
        server.call("CONFIG", "RESETSTAT")
        server.freeze()
        store.put(b"written", b"1", MODEL)
        await asyncio.sleep(0.05)  # until it is on its way to the server
        store.put(b"queued", b"2", MODEL)
        async with asyncio.timeout(LIMIT_S):
            assert await store.get_many([b"written", b"queued"]) == [b"1", b"2"]
        store.put(b"written", b"3", MODEL)
        assert await store.get_many([b"written"]) == [b"3"]  # the newest value
        server.thaw()
        assert calls(server, "mget") == 0
        read = store.get_many([b"queued", stored, b"unknown"])
        assert await read == [b"2", value(stored), None]
        await store.flush(LIMIT_S)
        assert await store.get_many([b"written", b"queued"]) == [b"3", b"2"]


async def test_values_that_could_not_be_written_are_no_longer_read(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        await fill(store, 1)
        server.kill()
        store.put(b"lost", b"lost", MODEL)
        await wait_until(lambda: store.state == "down")
        server.start()
        await assert_recovers(store)
        assert await store.get_many([b"lost"]) == [None]


async def test_flush_is_bounded(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        await fill(store, 1)
        server.freeze()
        store.put(b"a", b"a", MODEL)
        async with asyncio.timeout(LIMIT_S):
            await store.flush(0.05)
        server.thaw()
        await store.flush(LIMIT_S)
        assert await store.get_many([b"a"]) == [b"a"]


async def test_purge_deletes_only_keys_with_the_prefix(server: ValkeyProcess) -> None:
    prefix = b"a*[bc]?\\d:"
    others = [b"a*[bc]?d:1", b"aXb?\\d:1", b"a", b"aXXb1\\d:1", b"a*[bc]1\\d:1", b"b" + prefix]
    for key in others:
        server.call("SET", key, "other")
    async with opened(server.url, prefix=prefix) as store:
        keys = await fill(store, 3000)
        store.put(b"queued", b"", MODEL)
        assert await store.purge(b"qu*") == 0
        assert await store.purge(b"que") == 1
        store.put(b"queued", b"", MODEL)
        assert await store.purge(b"") == 3001
        await store.flush(LIMIT_S)
        assert await store.get_many(keys[:2]) == [None, None]
    assert sorted(server.call("KEYS", "*")) == sorted(others)


async def test_a_failed_purge_raises(server: ValkeyProcess) -> None:
    async with opened(server.url) as store:
        await fill(store, 1)
        server.kill()
        with pytest.raises(Unavailable, match="no connection"):
            await store.purge(b"")


async def test_close_ends_all_tasks_and_connections(server: ValkeyProcess) -> None:
    tasks = asyncio.all_tasks()
    async with opened(server.url) as store:
        keys = await fill(store, 1)
        await asyncio.gather(*(store.get_many(keys) for _ in range(5)))
        assert asyncio.all_tasks() > tasks
        await store.close()
        assert asyncio.all_tasks() == tasks
        assert await store.get_many(keys) == [None]
        store.put(b"late", b"", MODEL)
    async with asyncio.timeout(LIMIT_S):
        while server.call("CLIENT", "LIST").count(b"addr=") > 2:  # each line has two
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("cause", ["killed", "frozen"])
async def test_close_returns_although_the_server_is_lost(server: ValkeyProcess, cause: str) -> None:
    async with opened(server.url) as store:
        keys = await fill(store, 1)
        server.kill() if cause == "killed" else server.freeze()
        store.put(b"a", b"a", MODEL)
        read = asyncio.ensure_future(store.get_many(keys))
        await asyncio.sleep(0)
        async with asyncio.timeout(LIMIT_S):
            await store.close()
        assert await read == [None]
