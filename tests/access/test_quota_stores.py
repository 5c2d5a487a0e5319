"""What both ledgers do alike, and what the shared one does with a server that fails."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.access import shared_quota
from serve_app.access.quota import (
    BucketLevel,
    MemoryQuotaStore,
    QuotaStatus,
    QuotaStore,
    Reservation,
)
from serve_app.access.shared_quota import SharedQuotaStore
from serve_app.config import ApiKey, CacheConfig
from serve_app.errors import ConfigurationError, QuotaExceeded
from serve_app.metrics import QUOTA_FALLBACKS, Meter
from serve_app.valkey import client as redis_client
from serve_app.valkey import pipeline, shared_server
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.shared_server import SharedServer
from tests.valkey_server import ValkeyProcess

LIMIT_S = 20
#: So slow that nothing comes back during a test.
SLOW = 1


def key(name: str = "alice", **limits: int) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": "0" * 64, **limits})


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey") as process:
        yield process


@contextlib.asynccontextmanager
async def opened(
    url: str, *, meter: Meter | None = None, timeout_s: float = 5, **settings: object
) -> AsyncIterator[SharedQuotaStore]:
    """The ledger of a new process."""
    config = CacheConfig.model_validate({"url": url, "timeout_s": timeout_s, **settings})
    server = SharedServer(config, service="test", owner_pid=os.getpid())
    ledger = SharedQuotaStore(
        server, prefix=config.prefix, timeout_s=config.timeout_s, meter=meter or Meter()
    )
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    """One for all tests: a cluster takes nothing in the first two seconds."""
    with ValkeyProcess(tmp_path_factory.mktemp("cluster"), cluster=True) as process:
        yield process


@pytest.fixture(params=["memory", "valkey", "cluster"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[QuotaStore]:
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


async def sent(ledger: SharedQuotaStore) -> None:
    """Waits until nothing is on its way to the server."""
    assert ledger._asked is not None
    await asyncio.sleep(0)  # for what a reply that has come brings about
    for way in (ledger._asked.takes, ledger._asked.settlements):
        await way.close(LIMIT_S)


async def settled(ledger: QuotaStore, reservation: Reservation, tokens: int | None) -> None:
    await ledger.commit(reservation, tokens)
    if isinstance(ledger, SharedQuotaStore):
        await sent(ledger)


async def refused(ledger: QuotaStore, key: ApiKey, tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await ledger.reserve(key, tokens)
    return caught.value


async def left(ledger: QuotaStore, key: ApiKey) -> int:
    """Tokens that the key may use now, whole ones."""
    status = (await ledger.reserve(key, 0)).status
    assert status.tokens is not None
    return int(status.tokens.left + 0.5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_are_counted(ledger: QuotaStore) -> None:
    limited = key(requests_per_minute=3)
    for _ in range(3):
        await ledger.reserve(limited, 10**6)
    error = await refused(ledger, limited)
    assert 1 <= error.retry_after_s <= 20
    assert "3 requests a minute" in str(error)
    await ledger.reserve(key("bob", requests_per_minute=3), 1)


async def test_an_estimate_that_was_wrong_is_put_right(ledger: QuotaStore) -> None:
    limited = key(tokens_per_minute=60)
    reservation = await ledger.reserve(limited, 60)
    await refused(ledger, limited, 30)
    await settled(ledger, reservation, 20)
    assert 40 <= await left(ledger, limited) < 60
    reservation = await ledger.reserve(limited, 1)
    await settled(ledger, reservation, 600)
    error = await refused(ledger, limited, 1)
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    assert 500 < error.retry_after_s <= 561


async def test_a_request_that_failed_costs_itself_and_no_tokens(ledger: QuotaStore) -> None:
    limited = key(requests_per_minute=2, tokens_per_minute=1000)
    reservation = await ledger.reserve(limited, 1000)
    await settled(ledger, reservation, None)
    reservation = await ledger.reserve(limited, 1000)
    await settled(ledger, reservation, None)
    error = await refused(ledger, limited, 1)
    assert "2 requests a minute" in str(error)


async def test_more_than_a_minutes_worth_passes_a_full_bucket_and_leaves_a_debt(
    ledger: QuotaStore,
) -> None:
    limited = key(tokens_per_minute=100)
    reservation = await ledger.reserve(limited, 300)
    assert reservation.status.tokens is not None
    assert reservation.status.tokens.left == -200
    error = await refused(ledger, limited, 1)
    assert 60 < error.retry_after_s <= 121
    small = key("bob", tokens_per_minute=100)
    await ledger.reserve(small, 20)
    await refused(ledger, small, 300)


async def test_tokens_in_work_are_bounded(ledger: QuotaStore) -> None:
    limited = key(concurrent_tokens=100)
    first = await ledger.reserve(limited, 60)
    second = await ledger.reserve(limited, 40)
    error = await refused(ledger, limited, 1)
    assert "100 tokens in work at once" in str(error)
    assert (error.retry_after_s, error.headers) == (1, {})
    await settled(ledger, first, 5)
    await refused(ledger, limited, 61)
    third = await ledger.reserve(limited, 60)
    for reservation in (second, third):
        await settled(ledger, reservation, None)
    alone = await ledger.reserve(limited, 500)
    await refused(ledger, limited, 1)
    await settled(ledger, alone, 500)
    await ledger.reserve(limited, 100)


async def test_a_limit_that_comes_later_begins_full(ledger: QuotaStore) -> None:
    await ledger.reserve(key(requests_per_minute=SLOW + 1), 10**6)
    status = (await ledger.reserve(key(requests_per_minute=2, tokens_per_minute=50), 10)).status
    assert status.tokens == BucketLevel(50, 40)
    assert status.requests is not None
    assert status.requests.left == pytest.approx(0, abs=0.5)


async def test_a_ticket_tells_how_the_key_stands(ledger: QuotaStore) -> None:
    reservation = await ledger.reserve(key(requests_per_minute=SLOW, tokens_per_minute=1000), 400)
    assert reservation.status == QuotaStatus(BucketLevel(SLOW, 0), BucketLevel(1000, 600))
    assert reservation.headers() == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "24s",
    }


async def test_a_crowd_gets_no_more_than_there_is(ledger: QuotaStore) -> None:
    limited = key(requests_per_minute=20, tokens_per_minute=10**6)
    results = await asyncio.gather(
        *(ledger.reserve(limited, 100) for _ in range(200)), return_exceptions=True
    )
    assert {type(result) for result in results} == {Reservation, QuotaExceeded}
    # The server may need some of the seconds that each bring a third of one more.
    assert 20 <= sum(isinstance(result, Reservation) for result in results) <= 25


async def test_processes_share_one_budget(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=SLOW + 1, tokens_per_minute=100, concurrent_tokens=70)
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        reservation = await one.reserve(limited, 60)
        error = await refused(other, limited, 20)
        assert "70 tokens in work" in str(error)
        await settled(other, reservation, 60)  # not by the one that let it in, which is no matter
        await other.reserve(limited, 20)
        await refused(one, limited, 1)


async def test_processes_with_another_prefix_do_not_share(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=SLOW)
    async with opened(valkey.url) as one, opened(valkey.url, prefix="other") as other:
        await one.reserve(limited, 1)
        await other.reserve(limited, 1)
        await refused(one, limited)


async def test_a_process_that_died_does_not_keep_its_tokens(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quota, "_HOLD_S", 1)
    limited = key(concurrent_tokens=100)
    async with opened(valkey.url) as ledger:
        await ledger.reserve(limited, 100)  # and is never settled
        await refused(ledger, limited, 1)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    reservation = await ledger.reserve(limited, 100)
                    break
                except QuotaExceeded:
                    await asyncio.sleep(0.05)
        await refused(ledger, limited, 1)
        await settled(ledger, reservation, 100)
        await ledger.reserve(limited, 100)


async def test_nothing_stays_on_the_server_for_ever(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=1, tokens_per_minute=60, concurrent_tokens=1000)
    async with opened(valkey.url) as ledger:
        reservation = await ledger.reserve(limited, 600)
        await settled(ledger, reservation, 6000)
        await ledger.reserve(key("bob", concurrent_tokens=1000), 10)
        found = valkey.call("KEYS", "*")
        assert {name.rpartition(b":")[2] for name in found} == {b"levels", b"running"}
        assert all(name.startswith(b"embedserve:quota:{") for name in found)
        for name in found:
            assert 0 < valkey.call("TTL", name) <= 6001, name
        # A debt is kept until it is paid.
        assert valkey.call("TTL", "embedserve:quota:{alice}:levels") > 5900


@pytest.mark.parametrize("lost", ["levels", "running"])
async def test_a_server_that_drops_a_key_for_room_blocks_nobody(
    valkey: ValkeyProcess, lost: str
) -> None:
    limited = key(concurrent_tokens=100)
    async with opened(valkey.url) as ledger:
        reservation = await ledger.reserve(limited, 60)
        valkey.call("DEL", f"embedserve:quota:{{alice}}:{lost}")
        if lost == "levels":
            await refused(ledger, limited, 50)
            await settled(ledger, reservation, 60)
        await ledger.reserve(limited, 100)


async def test_while_the_server_is_gone_each_process_counts_by_itself(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    limited = key(requests_per_minute=SLOW + 2, concurrent_tokens=10)
    meter = Meter()
    async with opened(valkey.url, meter=meter) as ledger:
        before = await ledger.reserve(limited, 5)
        valkey.kill()
        for _ in range(3):
            reservation = await ledger.reserve(limited, 5)
            await ledger.commit(reservation, 5)
        await refused(ledger, limited)
        await ledger.commit(before, 5)
        await until(lambda: ledger.state == "down")
        await refused(ledger, limited)
        assert set(fallbacks(meter)) == {"connection", "down"}
        assert caplog.text.count("counts quotas by itself: no connection") == 1
        valkey.start()
        await until(lambda: ledger.state == "up")
        await ledger.reserve(limited, 5)
        assert fallbacks(meter) == {}


async def test_a_server_that_hangs_holds_nobody_up(valkey: ValkeyProcess) -> None:
    limited = key(requests_per_minute=10**6, concurrent_tokens=10**6)
    meter = Meter()
    async with opened(valkey.url, meter=meter, timeout_s=0.05) as ledger:
        await ledger.reserve(limited, 1)
        valkey.freeze()
        async with asyncio.timeout(LIMIT_S):
            for _ in range(300):
                await ledger.commit(await ledger.reserve(limited, 1), 1)
        counted = fallbacks(meter)
        assert 1 <= counted["timeout"] <= 20
        assert counted["timeout"] + counted["down"] == 300
        valkey.thaw()
        await until(lambda: ledger.state == "up")
        assert (await ledger.reserve(limited, 1)).entry is not None


async def test_nobody_waits_for_long_behind_others(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(valkey.url, timeout_s=0.1) as ledger:
        await ledger.reserve(key(requests_per_minute=9), 1)
        going_on = asyncio.Event()

        async def wait(*args: Any) -> list[Any]:
            await going_on.wait()
            return await redis_client.run(*args)

        monkeypatch.setattr(pipeline, "run", wait)
        assert ledger._asked is not None
        ledger._asked.takes._timeout_s = 3600
        async with asyncio.timeout(LIMIT_S):
            reservations = [await ledger.reserve(key(requests_per_minute=9), 1) for _ in range(2)]
        assert [reservation.entry for reservation in reservations] == [None, None]
        going_on.set()
        await sent(ledger)


async def test_a_crowd_travels_together(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    async def spy(client: redis_client.Client, scripts: Sequence[redis_client.Script]) -> list[Any]:
        sizes.append(len(scripts))
        return await redis_client.run(client, scripts)

    monkeypatch.setattr(pipeline, "run", spy)
    async with opened(valkey.url) as ledger:
        limited = key(requests_per_minute=10**6)
        await asyncio.gather(*(ledger.reserve(limited, 1) for _ in range(200)))
    assert sizes == [128, 72]


async def test_what_the_server_let_in_too_late_is_given_back(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = key(tokens_per_minute=1000, concurrent_tokens=1000)
    async with opened(valkey.url, timeout_s=0.2) as ledger:
        await ledger.reserve(limited, 0)

        async def lose(*args: Any) -> None:
            monkeypatch.setattr(pipeline, "run", redis_client.run)
            await redis_client.run(*args)
            raise TimeoutError

        monkeypatch.setattr(pipeline, "run", lose)
        assert (await ledger.reserve(limited, 900)).entry is None
        await sent(ledger)
        assert (await ledger.reserve(limited, 900)).entry is not None


async def test_what_was_taken_for_a_client_who_left_is_given_back(valkey: ValkeyProcess) -> None:
    limited = key(tokens_per_minute=1000, concurrent_tokens=1000)
    async with opened(valkey.url) as ledger:
        await ledger.reserve(limited, 0)
        taking = asyncio.create_task(ledger.reserve(limited, 1000))
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        await sent(ledger)
        await ledger.reserve(limited, 1000)


async def test_a_server_that_takes_no_writes_is_down(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_quota, "_IDLE_AFTER_S", 0.2)
    limited = key(requests_per_minute=2)
    meter = Meter()
    async with opened(valkey.url, meter=meter) as ledger:
        await ledger.reserve(limited, 1)
        valkey.call("CONFIG", "SET", "min-replicas-to-write", 1)
        await until(lambda: ledger.state == "down")  # a probe writes, too
        await ledger.reserve(limited, 1)
        await ledger.reserve(limited, 1)
        await refused(ledger, limited)
        valkey.call("CONFIG", "SET", "min-replicas-to-write", 0)
        await until(lambda: ledger.state == "up")
        await ledger.reserve(limited, 1)


async def test_a_server_that_forgot_the_scripts_is_told_again(valkey: ValkeyProcess) -> None:
    meter = Meter()
    async with opened(valkey.url, meter=meter) as ledger:
        for _ in range(2):
            reservation = await ledger.reserve(key(requests_per_minute=9), 1)
            await settled(ledger, reservation, 1)
            valkey.call("SCRIPT", "FLUSH")
        assert fallbacks(meter) == {}


async def test_no_server_is_asked_while_no_key_has_a_limit(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as ledger:
        await asyncio.sleep(0)
        assert ledger.state == "down"
    assert int(valkey.call("INFO", "stats")["total_connections_received"]) <= 3  # our own


async def test_without_an_embedded_server_each_process_counts_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise EmbeddedUnavailable("There is no server for this system.")

    monkeypatch.setattr(shared_server, "lease_server", refuse)
    limited = key(requests_per_minute=1)
    async with opened("embedded", data_dir=str(tmp_path)) as ledger:
        ledger.open()
        await ledger.reserve(limited, 1)
        await refused(ledger, limited)
        await until(lambda: "There is no server for this system." in caplog.text)


async def test_an_embedded_server_is_shared_by_processes(tmp_path: Path) -> None:
    limited = key(requests_per_minute=1)
    folder = str(tmp_path)
    async with opened("embedded", data_dir=folder) as one, opened("embedded", data_dir=folder) as other:
        one.open()
        other.open()
        await until(lambda: one.state == other.state == "up")
        await one.reserve(limited, 1)
        await refused(other, limited)


async def test_a_url_that_cannot_be_read_is_told_when_it_is_needed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened("nonsense://s3cret@host") as ledger:
        with pytest.raises(ConfigurationError):
            ledger.open()
        caplog.set_level(logging.INFO)
        assert (await ledger.reserve(key(requests_per_minute=1), 1)).entry is None
        assert "counts quotas by itself" in caplog.text
        assert "s3cret" not in caplog.text
