"""Behavior of both quota stores, and of the shared one when its server fails."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.client import Pipeline

from serve_app.access.quota import (
    BucketLevel,
    MemoryQuotaStore,
    QuotaStatus,
    QuotaStore,
    Reservation,
)
from serve_app.access.shared_quota import SharedQuotaStore, open_quota_store
from serve_app.breaker import Breaker
from serve_app.config import ApiKey, CacheConfig
from serve_app.errors import ConfigurationError, QuotaExceeded
from serve_app.meter import Meter
from serve_app.metrics import QUOTA_FALLBACKS
from serve_app.valkey.remote_server import FindServer
from serve_app.valkey.server_address import ServerAddress
from serve_app.valkey.shared_server import ServiceIdentity, SharedServer
from tests.valkey_server import ValkeyProcess

LIMIT_S = 30
#: Requests per minute, so few that none refills during a test.
SLOW = 1


def key(name: str = "alice", **limits: int) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": "0" * 64, **limits})


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey") as process:
        yield process


@contextlib.asynccontextmanager
async def opened(
    url: str,
    *,
    meter: Meter | None = None,
    timeout_s: float = 5,
    reservation_ttl_s: int = 180,
    breaker: Breaker | None = None,
    find_server: FindServer | None = None,
    **settings: object,
) -> AsyncIterator[SharedQuotaStore]:
    """The store of a new process."""
    config = CacheConfig.model_validate({"url": url, "timeout_s": timeout_s, **settings})
    server = SharedServer(config, service="test", owner_pid=os.getpid(), find_server=find_server)
    store = SharedQuotaStore(
        server,
        prefix=config.prefix,
        timeout_s=config.timeout_s,
        meter=meter or Meter(),
        reservation_ttl_s=reservation_ttl_s,
        breaker=breaker,
    )
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """Shared by all tests, because a cluster accepts no commands in its first two seconds."""
    with ValkeyProcess(tmp_path_factory.mktemp("cluster"), cluster=True) as process:
        yield process


@pytest.fixture(params=["memory", "valkey", "cluster"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[QuotaStore]:
    if request.param == "memory":
        yield MemoryQuotaStore()
        return
    server: ValkeyProcess = request.getfixturevalue(request.param)
    server.call("FLUSHALL")
    server.call("SCRIPT", "FLUSH")
    meter = Meter()
    async with opened(server.url, meter=meter) as shared:
        yield shared
    assert fallbacks(meter) == {}


def fallbacks(meter: Meter) -> dict[str, float]:
    counts = meter.drain().items()
    return {tags[0]: amount for (metric, tags), amount in counts if metric is QUOTA_FALLBACKS}


async def flush(store: SharedQuotaStore) -> None:
    """Waits until all operations are sent, including those that a reply triggers."""
    await asyncio.sleep(0)
    await store.flush(LIMIT_S)


async def commit(store: QuotaStore, reservation: Reservation, tokens: int | None) -> None:
    await store.commit(reservation, tokens)
    if isinstance(store, SharedQuotaStore):
        await flush(store)


async def refusal(store: QuotaStore, key: ApiKey, tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await store.reserve(key, tokens)
    return caught.value


async def tokens_left(store: QuotaStore, key: ApiKey) -> int:
    """Returns the tokens that the key may use now, rounded."""
    status = (await store.reserve(key, 0)).status
    assert status.tokens is not None
    return int(status.tokens.remaining + 0.5)


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_are_counted(store: QuotaStore) -> None:
    limited = key(requests_per_minute=3)
    for _ in range(3):
        await store.reserve(limited, 10**6)
    error = await refusal(store, limited)
    assert 1 <= error.retry_after_s <= 20
    assert "3 requests a minute" in str(error)
    await store.reserve(key("bob", requests_per_minute=3), 1)
    await store.reserve(limited, 1, "another model")


async def test_a_commit_corrects_the_estimate(store: QuotaStore) -> None:
    limited = key(tokens_per_minute=60)
    reservation = await store.reserve(limited, 60)
    await refusal(store, limited, 30)
    await commit(store, reservation, 20)
    assert 40 <= await tokens_left(store, limited) < 60
    reservation = await store.reserve(limited, 1)
    await commit(store, reservation, 600)
    error = await refusal(store, limited, 1)
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert 500 < error.retry_after_s <= 561


async def test_a_failed_request_is_charged_no_tokens(store: QuotaStore) -> None:
    limited = key(requests_per_minute=2, tokens_per_minute=1000)
    reservation = await store.reserve(limited, 1000)
    await commit(store, reservation, None)
    reservation = await store.reserve(limited, 1000)
    await commit(store, reservation, None)
    error = await refusal(store, limited, 1)
    assert "2 requests a minute" in str(error)


async def test_a_request_larger_than_the_bucket_passes_if_it_is_full_and_overdraws_it(
    store: QuotaStore,
) -> None:
    limited = key(tokens_per_minute=100)
    reservation = await store.reserve(limited, 300)
    assert reservation.status.tokens is not None
    assert reservation.status.tokens.remaining == -200
    error = await refusal(store, limited, 1)
    assert 60 < error.retry_after_s <= 121
    small = key("bob", tokens_per_minute=100)
    await store.reserve(small, 20)
    await refusal(store, small, 300)


async def test_tokens_in_flight_are_limited(store: QuotaStore) -> None:
    limited = key(concurrent_tokens=100)
    first = await store.reserve(limited, 60)
    second = await store.reserve(limited, 40)
    error = await refusal(store, limited, 1)
    assert "100 tokens in flight" in str(error)
    assert (error.retry_after_s, error.headers) == (1, {})
    await commit(store, first, 5)
    await refusal(store, limited, 61)
    third = await store.reserve(limited, 60)
    for reservation in (second, third):
        await commit(store, reservation, None)
    large = await store.reserve(limited, 500)
    await refusal(store, limited, 1)
    await commit(store, large, 500)
    await store.reserve(limited, 100)


async def test_the_bucket_of_a_new_limit_starts_full(store: QuotaStore) -> None:
    await store.reserve(key(requests_per_minute=SLOW + 1), 10**6)
    status = (await store.reserve(key(requests_per_minute=2, tokens_per_minute=50), 10)).status
    assert status.tokens == BucketLevel(50, 40)
    assert status.requests is not None
    assert status.requests.remaining == pytest.approx(0, abs=0.5)


async def test_a_reservation_has_the_status_of_its_key(store: QuotaStore) -> None:
    reservation = await store.reserve(key(requests_per_minute=SLOW, tokens_per_minute=1000), 400)
    assert reservation.status == QuotaStatus(BucketLevel(SLOW, 0), BucketLevel(1000, 600))
    assert reservation.headers() == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "24s",
    }


async def test_concurrent_requests_get_no_more_than_the_limit(store: QuotaStore) -> None:
    limited = key(requests_per_minute=20, tokens_per_minute=10**6)
    results = await asyncio.gather(
        *(store.reserve(limited, 100) for _ in range(200)), return_exceptions=True
    )
    assert {type(result) for result in results} == {Reservation, QuotaExceeded}
    # The bucket refills by a third of a request each second while the server is busy.
    assert 20 <= sum(isinstance(result, Reservation) for result in results) <= 25


async def test_processes_share_the_limits(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=SLOW + 1, tokens_per_minute=100, concurrent_tokens=70)
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        reservation = await one.reserve(limited, 60)
        error = await refusal(other, limited, 20)
        assert "70 tokens in flight" in str(error)
        await commit(other, reservation, 60)  # any process may commit
        await other.reserve(limited, 20)
        await refusal(one, limited, 1)


async def test_64_racing_processes_get_no_more_than_the_limit(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=20, tokens_per_minute=10**6, concurrent_tokens=1000)
    async with contextlib.AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(valkey.url)) for _ in range(64)]
        results = await asyncio.gather(
            *(store.reserve(limited, 100) for store in stores * 4), return_exceptions=True
        )
        assert {type(result) for result in results} == {Reservation, QuotaExceeded}
        assert sum(isinstance(result, Reservation) for result in results) == 10  # 1000 tokens


async def test_processes_with_another_prefix_do_not_share(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=SLOW)
    async with opened(valkey.url) as one, opened(valkey.url, prefix="other") as other:
        await one.reserve(limited, 1)
        await other.reserve(limited, 1)
        await refusal(one, limited)


async def test_the_reservations_of_a_dead_process_expire(valkey: ValkeyProcess) -> None:
    limited = key(concurrent_tokens=100)
    async with opened(valkey.url, reservation_ttl_s=3) as dead, opened(valkey.url) as store:
        await dead.reserve(limited, 100)  # and never commit it
        await refusal(store, limited, 1)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    reservation = await store.reserve(limited, 100)
                    break
                except QuotaExceeded:
                    await asyncio.sleep(0.05)
        await refusal(store, limited, 1)
        await commit(store, reservation, 100)
        await store.reserve(limited, 100)


async def test_all_entries_on_the_server_expire(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=1, tokens_per_minute=60, concurrent_tokens=1000)
    async with opened(valkey.url) as store:
        reservation = await store.reserve(limited, 600)
        await commit(store, reservation, 6000)
        await store.reserve(key("bob", concurrent_tokens=1000), 10)
        names = valkey.call("KEYS", "*")
        assert {name.rpartition(b":")[2] for name in names} == {b"levels", b"running"}
        assert all(name.startswith(b"embedserve:quota:{") for name in names)
        for name in names:
            assert 0 < valkey.call("TTL", name) <= 6001, name
        # An overdrawn bucket is stored until it has refilled.
        assert valkey.call("TTL", "embedserve:quota:{alice:}:levels") > 5900


@pytest.mark.parametrize("evicted", ["levels", "running"])
async def test_eviction_of_an_entry_blocks_no_request(valkey: ValkeyProcess, evicted: str) -> None:
    limited = key(concurrent_tokens=100)
    async with opened(valkey.url) as store:
        reservation = await store.reserve(limited, 60)
        valkey.call("DEL", f"embedserve:quota:{{alice:}}:{evicted}")
        if evicted == "levels":
            await refusal(store, limited, 50)
            await commit(store, reservation, 60)
        await store.reserve(limited, 100)


async def test_while_the_server_is_down_each_process_counts_by_itself(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    limited = key(requests_per_minute=SLOW + 2, concurrent_tokens=10)
    meter = Meter()
    async with opened(valkey.url, meter=meter) as store:
        before = await store.reserve(limited, 5)
        valkey.kill()
        for _ in range(3):
            reservation = await store.reserve(limited, 5)
            await store.commit(reservation, 5)
        await refusal(store, limited)
        await store.commit(before, 5)
        await wait_until(lambda: store.state == "down")
        await refusal(store, limited)
        assert set(fallbacks(meter)) == {"connection", "down"}
        assert caplog.text.count("counts quotas by itself: no connection") == 1
        valkey.start()
        await wait_until(lambda: store.state == "up")
        await store.reserve(limited, 5)
        assert fallbacks(meter) == {}


async def test_a_server_that_hangs_delays_requests_only_briefly(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=10**6, concurrent_tokens=10**6)
    meter = Meter()
    async with opened(valkey.url, meter=meter, timeout_s=0.05) as store:
        await store.reserve(limited, 1)
        meter.drain()  # on a busy machine, this one may have timed out
        valkey.freeze()
        async with asyncio.timeout(LIMIT_S):
            for _ in range(300):
                await store.commit(await store.reserve(limited, 1), 1)
        counts = fallbacks(meter)
        assert 1 <= counts["timeout"] <= 20
        assert counts["timeout"] + counts["down"] == 300
        valkey.thaw()
        async with asyncio.timeout(LIMIT_S):
            while (await store.reserve(limited, 1)).entry is None:
                await asyncio.sleep(0.01)


async def test_a_request_does_not_wait_for_a_pipeline_that_hangs(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(valkey.url, timeout_s=0.1) as store:
        await store.reserve(key(requests_per_minute=9), 1)
        resumed = asyncio.Event()

        async def hang(pipeline: Pipeline, **options: Any) -> Any:
            while not resumed.is_set():
                with contextlib.suppress(asyncio.CancelledError):  # the pipeline's own timeout
                    await resumed.wait()
            return await execute(pipeline, **options)

        execute = Pipeline.execute
        monkeypatch.setattr(Pipeline, "execute", hang)
        async with asyncio.timeout(LIMIT_S):
            reservations = [await store.reserve(key(requests_per_minute=9), 1) for _ in range(2)]
        assert [reservation.entry for reservation in reservations] == [None, None]
        resumed.set()
        await flush(store)


async def test_concurrent_requests_share_a_pipeline(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    async def record_size(pipeline: Pipeline, **options: Any) -> Any:
        sizes.append(len(pipeline))
        return await execute(pipeline, **options)

    execute = Pipeline.execute
    monkeypatch.setattr(Pipeline, "execute", record_size)
    async with opened(valkey.url) as store:
        limited = key(requests_per_minute=10**6)
        await asyncio.gather(*(store.reserve(limited, 1) for _ in range(200)))
    assert [size for size in sizes if size > 1] == [128, 128, 72]  # the first twice: EVAL


async def test_a_reservation_that_was_made_too_late_is_refunded(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = key(tokens_per_minute=1000, concurrent_tokens=1000)
    async with opened(valkey.url) as store:
        await store.reserve(limited, 0)

        async def lose_replies(pipeline: Pipeline, **options: Any) -> Any:
            monkeypatch.undo()
            await pipeline.execute(**options)
            raise TimeoutError

        monkeypatch.setattr(Pipeline, "execute", lose_replies)
        assert (await store.reserve(limited, 900)).entry is None
        await flush(store)
        assert (await store.reserve(limited, 900)).entry is not None


async def test_the_reservation_of_a_cancelled_request_is_refunded(valkey: ValkeyProcess) -> None:
    limited = key(tokens_per_minute=1000, concurrent_tokens=1000)
    async with opened(valkey.url) as store:
        await store.reserve(limited, 0)
        cancelled = asyncio.create_task(store.reserve(limited, 1000))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await flush(store)
        await store.reserve(limited, 1000)


async def test_a_server_that_refuses_writes_is_down(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=2)
    async with opened(valkey.url, breaker=Breaker(idle_after_s=0.2)) as store:
        await store.reserve(limited, 1)
        valkey.call("CONFIG", "SET", "min-replicas-to-write", 1)
        await wait_until(lambda: store.state == "down")  # because probes write
        await store.reserve(limited, 1)
        await store.reserve(limited, 1)
        await refusal(store, limited)
        valkey.call("CONFIG", "SET", "min-replicas-to-write", 0)
        await wait_until(lambda: store.state == "up")
        await store.reserve(limited, 1)


async def test_scripts_that_the_server_lost_are_sent_again(valkey: ValkeyProcess) -> None:
    meter = Meter()
    async with opened(valkey.url, meter=meter) as store:
        for _ in range(2):
            reservation = await store.reserve(key(requests_per_minute=9), 1)
            await commit(store, reservation, 1)
            valkey.call("SCRIPT", "FLUSH")
        assert fallbacks(meter) == {}


async def test_the_server_is_not_used_while_no_key_has_a_limit(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as store:
        await asyncio.sleep(0)
        assert store.state == "down"
    assert int(valkey.call("INFO", "stats")["total_connections_received"]) <= 3  # of this test


async def test_without_an_embedded_server_each_process_counts_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_a_directory = tmp_path / "file"
    not_a_directory.touch()
    limited = key(requests_per_minute=1)
    async with opened("embedded", data_dir=str(not_a_directory)) as store:
        store.open()
        await store.reserve(limited, 1)
        await refusal(store, limited)
        reason = "counts quotas by itself: No cache server can run"
        await wait_until(lambda: reason in caplog.text)


async def test_an_embedded_server_is_shared_by_processes(tmp_path: Path) -> None:
    limited = key(requests_per_minute=1)
    async with (
        opened("embedded", data_dir=str(tmp_path)) as one,
        opened("embedded", data_dir=str(tmp_path)) as other,
    ):
        one.open()
        other.open()
        await wait_until(lambda: one.state == other.state == "up")
        await one.reserve(limited, 1)
        await refusal(other, limited)


async def test_an_embedded_server_is_shared_by_machines(tmp_path: Path) -> None:
    limited = key(requests_per_minute=20)
    config = CacheConfig.model_validate({"data_dir": str(tmp_path)})
    head = SharedServer(config, service="test", owner_pid=os.getpid())

    async def find() -> ServerAddress:
        return await asyncio.to_thread(head.open_port, "127.0.0.1")

    admitted = 0
    async with (
        opened("embedded", data_dir=str(tmp_path)) as local,
        opened("embedded", data_dir=str(tmp_path / "first"), find_server=find) as first,
        opened("embedded", data_dir=str(tmp_path / "second"), find_server=find) as second,
    ):
        stores = (local, first, second)
        for store in stores:
            store.open()
        await wait_until(lambda: all(store.state == "up" for store in stores))
        started = time.monotonic()
        for _ in range(20):
            for store in stores:
                with contextlib.suppress(QuotaExceeded):
                    await store.reserve(limited, 1)
                    admitted += 1
        refilled = (time.monotonic() - started) * 20 / 60
    head.release()
    assert 20 <= admitted <= 21 + refilled


async def test_an_invalid_url_is_reported_when_a_key_has_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened("nonsense://s3cret@host") as store:
        with pytest.raises(ConfigurationError):
            store.open()
        caplog.set_level(logging.INFO)
        assert (await store.reserve(key(requests_per_minute=1), 1)).entry is None
        assert "counts quotas by itself" in caplog.text
        assert "s3cret" not in caplog.text


def test_quotas_are_stored_on_the_cache_server_if_there_is_one() -> None:
    identity = ServiceIdentity(service="test", owner_pid=os.getpid())
    shared = open_quota_store(CacheConfig(), identity, Meter())
    assert isinstance(shared, SharedQuotaStore)
    assert shared.state == "down"  # it connects once a key has a limit
    no_server = CacheConfig.model_validate({"url": "none"})
    assert isinstance(open_quota_store(no_server, identity, Meter()), MemoryQuotaStore)
