"""The ledger that processes share on a real server, which is killed, frozen and filled."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from redis.asyncio.client import Pipeline

from serve_app.access.budget import next_month
from serve_app.access.ledger import Ledger, LedgerRow, MemoryLedger, Usage
from serve_app.access.ledger_store import KEEP_DAYS
from serve_app.access.shared_ledger import SharedLedger, open_ledger
from serve_app.breaker import Breaker
from serve_app.cache.l2 import open_l2_cache
from serve_app.config import CacheConfig
from serve_app.errors import ConfigurationError, Unavailable
from serve_app.meter import Meter
from serve_app.metrics import LEDGER_FAILURES
from serve_app.valkey.embedded import running_servers
from serve_app.valkey.shared_server import ServiceIdentity, SharedServer
from tests.fakes import SPEC
from tests.valkey_server import ValkeyProcess

LIMIT_S = 30
ONE = Usage(1, 2, 1, 30, 20, 1_234_567_891, 7)
NOON = datetime.now(UTC).replace(hour=12)


class Clock:
    """A clock that tests set."""

    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey") as process:
        yield process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path_factory.mktemp("cluster"), cluster=True) as process:
        yield process


@contextlib.asynccontextmanager
async def opened(
    url: str,
    *,
    prefix: str = "embedserve",
    meter: Meter | None = None,
    clock: Callable[[], datetime] | None = None,
    write_every_s: float = 3600,
    timeout_s: float = 5,
    breaker: Breaker | None = None,
    **settings: object,
) -> AsyncIterator[SharedLedger]:
    """The ledger of a new process, which writes when the test says so."""
    config = CacheConfig.model_validate({"url": url, "timeout_s": timeout_s, **settings})
    ledger = SharedLedger(
        SharedServer(config, service="test", owner_pid=os.getpid()),
        prefix=prefix,
        timeout_s=timeout_s,
        meter=meter or Meter(),
        clock=clock or Clock(),
        write_every_s=write_every_s,
        breaker=breaker,
    )
    ledger.open()
    try:
        yield ledger
    finally:
        await ledger.close()


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def total(ledger: Ledger) -> Usage:
    """Returns the sum of all rows."""
    sums = Usage()
    for row in await ledger.rows():
        sums = sums.plus(row.usage)
    return sums


def times(usage: Usage, n: int) -> Usage:
    return Usage(*(n * value for value in usage))


def day_hash(day: date) -> str:
    return f"embedserve:{{ledger}}:day:{day}"


def failures(meter: Meter) -> dict[str, float]:
    counts = meter.counts().items()
    return {tags[0]: amount for (metric, tags), amount in counts if metric is LEDGER_FAILURES}


@pytest.fixture(params=["memory", "valkey", "cluster"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    """Each ledger, on the day of `NOON`."""
    if request.param == "memory":
        yield MemoryLedger(lambda: NOON.date())
        return
    server: ValkeyProcess = request.getfixturevalue(request.param)
    server.call("FLUSHALL")
    server.call("SCRIPT", "FLUSH")
    meter = Meter()
    async with opened(server.url, meter=meter, clock=Clock(NOON)) as shared:
        yield shared
    assert failures(meter) == {}


async def test_usage_is_summed_by_day_model_and_key(ledger: Ledger) -> None:
    for key, model in (("bob", "a:b"), ("", "a:b"), ("bob", "a:b"), ("bob", "org/c")):
        ledger.add(model, key, ONE)
    day = NOON.date()
    assert await ledger.rows() == [
        LedgerRow(day, "a:b", "", ONE),
        LedgerRow(day, "a:b", "bob", times(ONE, 2)),
        LedgerRow(day, "org/c", "bob", ONE),
    ]
    assert await ledger.rows(day) == await ledger.rows()
    assert await ledger.rows(day + timedelta(1)) == []
    assert ledger.month_nano_usd("bob") == 3 * ONE.nano_usd
    assert ledger.month_nano_usd("eve") == 0


async def test_sums_beyond_the_precision_of_floats_are_exact(ledger: Ledger) -> None:
    large = Usage(nano_usd=2**53 + 1)
    for _ in range(3):
        ledger.add("m", "k", large)
        await ledger.rows()
    assert await total(ledger) == times(large, 3)


async def test_processes_add_up(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        one.add("m", "k", ONE)
        other.add("m", "k", times(ONE, 10))
        await one.write()
        assert await total(other) == times(ONE, 11)
    async with opened(valkey.url, prefix="elsewhere") as third:
        assert await third.rows() == []
    assert all(valkey.call("TTL", name) == -1 for name in valkey.call("KEYS", "*"))


async def test_usage_is_written_every_interval_and_when_the_process_stops(
    valkey: ValkeyProcess,
) -> None:
    async with opened(valkey.url) as reader:
        async with opened(valkey.url, write_every_s=0.02) as ledger:
            await wait_until(lambda: ledger.state == "up")
            ledger.add("m", "k", ONE)
            async with asyncio.timeout(LIMIT_S):
                while await total(reader) != ONE:
                    await asyncio.sleep(0.01)
        async with opened(valkey.url) as ledger:
            ledger.add("m", "k", ONE)
        assert await total(reader) == times(ONE, 2)


@pytest.mark.parametrize("executed", [True, False])
async def test_a_write_whose_reply_is_lost_counts_once(
    valkey: ValkeyProcess, monkeypatch: pytest.MonkeyPatch, executed: bool
) -> None:
    meter = Meter()
    async with opened(valkey.url, meter=meter) as ledger:
        ledger.add("m", "k", ONE)
        await ledger.write()

        async def lose_reply(pipeline: Pipeline, **options: Any) -> Any:
            if executed:
                await execute(pipeline, **options)
            raise TimeoutError

        execute = Pipeline.execute
        monkeypatch.setattr(Pipeline, "execute", lose_reply)
        ledger.add("m", "k", ONE)
        assert not await ledger.write()
        monkeypatch.undo()
        ledger.add("m", "k", ONE)
        assert await ledger.write()
        assert await total(ledger) == times(ONE, 3)
        assert ledger.month_nano_usd("k") == 3 * ONE.nano_usd
        assert set(failures(meter)) == {"timeout"}


async def test_a_write_that_a_silent_server_executes_later_counts_once(
    valkey: ValkeyProcess,
) -> None:
    async with opened(valkey.url, timeout_s=0.05) as ledger:
        ledger.add("m", "k", ONE)
        await ledger.write()
        valkey.freeze()
        for _ in range(3):  # each stays in a buffer of the frozen server
            ledger.add("m", "k", ONE)
            await ledger.write()
        valkey.thaw()
        await wait_until(lambda: ledger.state == "up")
        await ledger.write()
        assert await total(ledger) == times(ONE, 4)


async def test_usage_waits_in_memory_while_the_server_is_down(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    meter = Meter()
    async with opened(valkey.url, meter=meter, write_every_s=0.02) as ledger:
        await wait_until(lambda: ledger.state == "up")
        valkey.kill()
        for _ in range(50):
            ledger.add("m", "k", ONE)
        await wait_until(lambda: ledger.state == "down")
        assert ledger.month_nano_usd("k") == 50 * ONE.nano_usd
        with pytest.raises(Unavailable, match="shared server"):
            await ledger.rows()
        valkey.start()
        await wait_until(lambda: ledger.state == "up")
        assert await total(ledger) == times(ONE, 50)
    assert set(failures(meter)) <= {"connection"}
    assert failures(meter)
    assert caplog.text.count("Costs are kept in memory until the shared server is back: no") == 1


async def test_an_idle_ledger_notices_that_the_server_is_gone(valkey: ValkeyProcess) -> None:
    breaker = Breaker(idle_after_s=0.1, max_failures=1)
    async with opened(valkey.url, write_every_s=0.02, breaker=breaker) as ledger:
        await wait_until(lambda: ledger.state == "up")
        valkey.kill()
        await wait_until(lambda: ledger.state == "down")


async def test_a_server_that_lost_its_data_gets_what_living_processes_added(
    valkey: ValkeyProcess,
) -> None:
    async with opened(valkey.url) as one, opened(valkey.url) as other:
        for ledger in (one, other):
            ledger.add("m", "k", ONE)
            await ledger.write()
        valkey.kill()
        valkey.start()  # without data
        one.add("m", "k", ONE)
        await one.write()
        await one.write()
        assert await total(one) == times(ONE, 2)
    # What a process has added, it compares with the server once more when it stops.
    async with opened(valkey.url) as reader:
        assert await total(reader) == times(ONE, 3)


async def test_costs_that_are_lost_are_logged(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(valkey.url) as ledger:
        ledger.add("m", "k", ONE)
        valkey.kill()
    assert "Costs of 1.234567891 USD could not be written and are lost." in caplog.text


async def test_a_month_counts_what_all_processes_have_used(valkey: ValkeyProcess) -> None:
    clock = Clock(NOON)
    async with (
        opened(valkey.url, clock=clock, write_every_s=0.02) as one,
        opened(valkey.url, clock=clock, write_every_s=0.02) as other,
    ):
        one.add("a", "k", ONE)
        other.add("b", "k", ONE)
        for ledger in (one, other):
            await wait_until(lambda: ledger.month_nano_usd("k") == 2 * ONE.nano_usd)  # noqa: B023
        async with opened(valkey.url, clock=clock, write_every_s=0.02) as late:
            await wait_until(lambda: late.month_nano_usd("k") == 2 * ONE.nano_usd)
        clock.now = next_month(NOON)
        assert one.month_nano_usd("k") == 0
        one.add("a", "k", ONE)
        await wait_until(lambda: other.month_nano_usd("k") == ONE.nano_usd)
    async with opened(valkey.url, clock=clock) as reader:
        days = [row.day for row in await reader.rows()]
        assert days == [NOON.date(), NOON.date(), clock.now.date()]


async def test_old_days_are_deleted(valkey: ValkeyProcess) -> None:
    today = datetime.now(UTC).date()
    async with opened(valkey.url) as ledger:
        ledger.add("m", "k", ONE)
    for age in (40, KEEP_DAYS - 1, KEEP_DAYS + 1, KEEP_DAYS + 300):
        valkey.call("COPY", day_hash(today), day_hash(today - timedelta(age)))

    def days() -> set[bytes]:
        return {name for name in valkey.call("KEYS", "*") if b":day:" in name}

    assert len(days()) == 5
    async with opened(valkey.url, write_every_s=0.02) as ledger:
        await wait_until(lambda: len(days()) == 3)
        ages = [(today - row.day).days for row in await ledger.rows()]
        assert ages == [KEEP_DAYS - 1, 40, 0]
        # The totals, without the entry of the process.
        closed = day_hash(today - timedelta(40))
        await wait_until(lambda: valkey.call("HLEN", closed) == len(Usage._fields))


async def test_nothing_is_added_to_a_day_long_past(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    for age in (34, 36):
        clock = Clock(datetime.now(UTC) - timedelta(age))
        async with opened(valkey.url, clock=clock) as ledger:
            ledger.add("m", "k", ONE)
    async with opened(valkey.url) as ledger:
        assert await total(ledger) == ONE
    assert caplog.text.count("Costs of 1.234567891 USD on") == 1


async def test_a_machine_with_a_wrong_clock_deletes_nothing(valkey: ValkeyProcess) -> None:
    async with opened(valkey.url) as ledger:
        ledger.add("m", "k", ONE)
    future = Clock(datetime.now(UTC) + timedelta(3 * 366))
    async with opened(valkey.url, clock=future, write_every_s=0.02) as ledger:
        await wait_until(lambda: ledger.state == "up")
        for _ in range(3):
            await ledger.write()
            await asyncio.sleep(0.05)
    async with opened(valkey.url) as ledger:
        assert await total(ledger) == ONE


class EmbeddedServers:
    """The embedded servers in a directory, and services that own them."""

    def __init__(self, data_dir: Path) -> None:
        self.config = CacheConfig.model_validate(
            {"url": "embedded", "data_dir": str(data_dir), "max_bytes": 8 << 20, "timeout_s": 1}
        )
        self._owner: subprocess.Popen[bytes] | None = None

    def start_service(self) -> ServiceIdentity:
        """Returns the identity of a new run of the service, with the same name."""
        self._owner = subprocess.Popen(["sleep", "3600"])
        return {"service": "test", "owner_pid": self._owner.pid}

    def ledger(self, identity: ServiceIdentity, **options: Any) -> SharedLedger:
        """Returns the ledger of a process of the service."""
        server = SharedServer(self.config, **identity)
        return SharedLedger(
            server, prefix="embedserve", timeout_s=1, meter=Meter(), write_every_s=0.02, **options
        )

    def call(self, *command: str) -> Any:
        """Sends a command to the server and returns its reply."""
        ((url, password),) = running_servers(Path(str(self.config.data_dir)))
        with redis.Redis.from_url(url, password=password) as client:
            return client.execute_command(*command)

    def server(self) -> psutil.Process:
        """Returns the process of the server."""
        return psutil.Process(int(self.call("INFO", "server")["process_id"]))

    def copy_today(self, age: int) -> None:
        """Copies the totals of today to those of `age` days ago."""
        today = datetime.now(UTC).date()
        self.call("COPY", day_hash(today), day_hash(today - timedelta(age)))

    def stop_service(self) -> None:
        """Ends the service, and waits until its server has saved its data and stopped."""
        server = self.server()
        if self._owner is not None:
            self._owner.kill()
            self._owner.wait()
        server.wait(LIMIT_S)


@pytest.fixture
def embedded() -> Iterator[EmbeddedServers]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as data_dir:
        servers = EmbeddedServers(Path(data_dir))
        yield servers
        with contextlib.suppress(psutil.Error, redis.ConnectionError, ValueError):
            servers.stop_service()


async def test_killing_the_embedded_server_loses_nothing(embedded: EmbeddedServers) -> None:
    ledger = embedded.ledger(embedded.start_service())
    ledger.open()
    try:
        ledger.add("m", "k", ONE)
        async with asyncio.timeout(LIMIT_S):
            while ledger.state == "down" or not await ledger.write():
                await asyncio.sleep(0.01)
        server = await asyncio.to_thread(embedded.server)
        server.kill()
        ledger.add("m", "k", ONE)
        async with asyncio.timeout(LIMIT_S):
            while not await ledger.write() or await asyncio.to_thread(server.is_running):
                await asyncio.sleep(0.01)
        await wait_until(lambda: ledger.month_nano_usd("k") == 2 * ONE.nano_usd)
        async with asyncio.timeout(LIMIT_S):
            while await total(ledger) != times(ONE, 2):
                await asyncio.sleep(0.01)
    finally:
        await ledger.close()


async def test_a_full_server_evicts_vectors_and_no_costs(embedded: EmbeddedServers) -> None:
    identity = embedded.start_service()
    ledger = embedded.ledger(identity)
    ledger.add("m", "k", ONE)
    async with asyncio.timeout(LIMIT_S):
        while ledger.state == "down" or not await ledger.write():
            await asyncio.sleep(0.01)
    for age in range(1, 300):
        await asyncio.to_thread(embedded.copy_today, age)
    l2 = await asyncio.to_thread(
        open_l2_cache, embedded.config.model_copy(update={"ttl_s": None}), identity, Meter()
    )
    l2.start()
    assert l2.store is not None
    for number in range(20_000):
        l2.store.put(b"key %d" % number, bytes(1600), "m")
        if number % 500 == 0:
            await l2.store.flush(LIMIT_S)
    await l2.store.flush(LIMIT_S)
    stats = await l2.stats()
    assert stats is not None
    assert stats.evictions > 10_000
    assert l2.store.writable
    l2.store.put(b"one more", b"value", "m")
    await l2.store.flush(LIMIT_S)
    assert await l2.store.get_many([b"one more"]) == [b"value"]
    ledger.add("m", "k", ONE)
    assert await total(ledger) == times(ONE, 301)  # one of them added now
    await l2.close()
    await ledger.close()


PROCESS = """
import asyncio, dataclasses, json, random, sys
from serve_app.access.ledger import Usage
from serve_app.access.shared_ledger import open_ledger
from serve_app.config import CacheConfig
from serve_app.meter import Meter
from tests.fakes import SPEC

async def main(config, identity, seed):
    specs = [dataclasses.replace(SPEC, nano_usd_per_1k_tokens=1)]
    ledger = open_ledger(CacheConfig.model_validate(config), identity, Meter(), specs)
    ledger.open()
    random.seed(seed)
    total = Usage()
    for number in range(2500):
        usage = Usage(*(random.randrange(10**limit) for limit in (1, 2, 2, 4, 4, 10, 10)))
        ledger.add(random.choice(("a", "b")), random.choice(("", "bob")), usage)
        total = total.plus(usage)
        if number % 100 == 0:
            await asyncio.sleep(0.05)
    await ledger.close()
    print(json.dumps(total))

asyncio.run(main(json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])))
"""


async def test_the_totals_of_four_processes_are_exact_before_and_after_a_restart(
    embedded: EmbeddedServers,
) -> None:
    identity = embedded.start_service()
    config = json.dumps(embedded.config.model_dump(mode="json") | {"url": "embedded"})
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROCESS, config, json.dumps(identity), str(seed)),
            stdout=subprocess.PIPE,
        )
        for seed in range(4)
    ]
    replies = [(await process.communicate())[0] for process in processes]
    expected = Usage()
    for reply in replies:
        expected = expected.plus(Usage(*json.loads(reply)))
    for restarted in (False, True):
        if restarted:
            await asyncio.to_thread(embedded.stop_service)
            identity = embedded.start_service()
        ledger = embedded.ledger(identity)
        ledger.open()
        await wait_until(lambda: ledger.state == "up")  # noqa: B023
        assert await total(ledger) == expected
        await ledger.close()


async def test_an_external_server_that_may_evict_costs_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for policy in ("allkeys-lru", "volatile-lfu"):
        with ValkeyProcess(
            tmp_path / policy, maxmemory="100mb", maxmemory_policy=policy
        ) as process:
            async with opened(process.url, write_every_s=0.02) as ledger:
                await wait_until(lambda: ledger.state == "up")
                for _ in range(3):
                    await ledger.write()
                    await asyncio.sleep(0.05)
    assert caplog.text.count("may evict the costs") == 1
    assert "its maxmemory-policy is allkeys-lru" in caplog.text


async def test_without_a_server_each_process_counts_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    identity: ServiceIdentity = {"service": "test", "owner_pid": os.getpid()}

    def opened_ledger(cache: dict[str, str], price: int) -> Ledger:
        spec = replace(SPEC, nano_usd_per_1k_tokens=price)
        return open_ledger(CacheConfig.model_validate(cache), identity, Meter(), [SPEC, spec])

    assert isinstance(opened_ledger({"url": "none"}, 1), MemoryLedger)
    config = {"url": "redis://localhost", "password_env": "UNSET"}
    assert isinstance(opened_ledger(config, 0), MemoryLedger)  # nothing has a price
    ledger = opened_ledger(config, 1)
    with pytest.raises(ConfigurationError, match="UNSET"):
        ledger.open()
    ledger.add("m", "k", ONE)
    assert await total(ledger) == ONE
    assert ledger.month_nano_usd("k") == ONE.nano_usd
    await ledger.close()
    assert caplog.text.count("Costs are counted in this process only") == 1
