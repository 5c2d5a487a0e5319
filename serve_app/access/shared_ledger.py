"""The ledger of all processes, on the server that they share.

`add` → usage of this process → twice a second → `LedgerStore`

While the server is down, usage is kept in memory and written later. What a process has not
written when it is killed is lost: the usage of half a second, or since the server went down.
"""

import asyncio
import contextvars
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Literal

from serve_app.access.ledger import Ledger, LedgerRow, MemoryLedger, Usage
from serve_app.access.ledger_store import (
    KEEP_DAYS,
    Change,
    LedgerStore,
    RowId,
)
from serve_app.breaker import Breaker
from serve_app.config import CacheConfig
from serve_app.cost import format_usd
from serve_app.errors import ConfigurationError, Unavailable
from serve_app.meter import Meter
from serve_app.metrics import LEDGER_FAILURES
from serve_app.model_spec import ModelSpec
from serve_app.valkey.client import describe_failure, failure_kind, ping
from serve_app.valkey.guarded_client import GuardedClient
from serve_app.valkey.shared_connection import SharedConnection
from serve_app.valkey.shared_server import ServiceIdentity, SharedServer

logger = logging.getLogger(__name__)

#: How often everything is compared with the server, which may have lost some of it in a crash.
_VERIFY_EVERY_S = 60.0
_TIDY_EVERY_S = 6 * 3600.0
#: The first write may tell that the server has something else than this process believes.
_PASSES = 2
_CLOSE_ATTEMPTS = 3
_NO_USAGE = Usage()


class _Month:
    """What each key has cost in a month: by this process and, as last read, by others."""

    def __init__(self, day: date) -> None:
        self.first_day = day.replace(day=1)
        self.own = defaultdict[str, int](int)
        self.written = defaultdict[str, int](int)  #: the part of `own` that the server has
        self._others: dict[str, int] = {}

    def set_total(self, key: str, nano_usd: int) -> None:
        """Sets the total of a key on the server."""
        self._others[key] = max(0, nano_usd - self.written[key])  # it may have lost data

    def total(self, key: str) -> int:
        """Returns the total of a key."""
        return self._others.get(key, 0) + self.own[key]


class SharedLedger:
    """Adds up the usage of all processes on the shared server. For one event loop."""

    def __init__(
        self,
        server: SharedServer,
        *,
        prefix: str,
        timeout_s: float,
        meter: Meter,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        write_every_s: float = 0.5,
        breaker: Breaker | None = None,
    ) -> None:
        """A ledger that isn't connected until `open` or the first usage.

        Args:
            server: provides the client.
            prefix: see `LedgerStore`.
            timeout_s: see `GuardedClient`.
            meter: counts failures.
            clock: returns the time in UTC.
            write_every_s: interval between writes.
            breaker: see `GuardedClient`.
        """
        self._connection = SharedConnection(
            server,
            timeout_s=timeout_s,
            probe=lambda client: ping(client, f"{prefix}:{{ledger}}:probe".encode()),
            on_down=lambda reason: logger.warning(
                "Costs are kept in memory until the shared server is back: %s.",
                reason.removesuffix("."),
            ),
            on_up=lambda: logger.info("Costs are written to the shared server again."),
            on_connect=self._create_store,
            breaker=breaker,
        )
        self._prefix = prefix
        self._meter = meter
        self._clock = clock
        self._write_every_s = write_every_s
        self._process = secrets.token_hex(8)
        self._store: LedgerStore | None = None
        self._usage = dict[RowId, Usage]()  # of this process since it started
        self._written = dict[RowId, Usage]()  # what the server has of it
        self._dirty = set[RowId]()
        self._month = _Month(clock().date())
        self._watched = set[str]()  # keys whose totals are read with each write
        self._write_lock = asyncio.Lock()
        self._connected = asyncio.Event()
        self._opened = False
        self._write_task: asyncio.Task[None] | None = None

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether usage reaches the server; `down` also before `open`."""
        return self._connection.state

    def open(self) -> None:
        """See `Ledger`.

        Raises:
            ConfigurationError: see `SharedServer.connect`.
        """
        if self._opened:
            return
        self._connection.open()
        self._opened = True
        # In an empty context: Ray cancels calls by the context they were made in.
        self._write_task = asyncio.get_running_loop().create_task(
            self._write_regularly(), context=contextvars.Context()
        )

    def add(self, model: str, key: str, usage: Usage) -> None:
        """See `Ledger`."""
        self._open_or_log()
        row = RowId(self._clock().date(), model, key)
        self._usage[row] = self._usage.get(row, _NO_USAGE).plus(usage)
        self._dirty.add(row)
        self._month_of(row.day).own[key] += usage.nano_usd

    def month_nano_usd(self, key: str) -> int:
        """See `Ledger`. From the first call on, the key's total is read with each write."""
        self._open_or_log()
        self._watched.add(key)
        return self._month_of(self._clock().date()).total(key)

    async def rows(self, since: date | None = None) -> list[LedgerRow]:
        """See `Ledger`.

        Raises:
            Unavailable: the server doesn't answer.
        """
        self._open_or_log()
        today = self._clock().date()
        first = max(since or date.min, today - timedelta(KEEP_DAYS))
        if self._connection.is_unavailable:
            return sorted(LedgerRow(*row, u) for row, u in self._usage.items() if row.day >= first)
        if self._store is None:
            raise Unavailable("The server that holds the costs is starting. Try again in a moment.")
        await self.write()
        try:
            return await self._store.rows(first, today + timedelta(1))  # clocks differ
        except Exception as error:
            raise Unavailable(
                f"The costs can't be read from the shared server: {describe_failure(error)}."
            ) from None

    async def write(self) -> bool:
        """Writes what is pending, and reads the totals of the month.

        Never raises. What can't be written is kept.

        Returns:
            Whether the server has everything.
        """
        async with self._write_lock:
            guarded, store = self._connection.guarded, self._store
            if guarded is None or store is None or guarded.state == "down":
                return not self._dirty
            if not self._dirty and not self._watched:
                return True
            try:
                for _ in range(_PASSES):
                    await self._write_pending(store)
                if self._watched:
                    await self._read_month(store)
            except Exception as error:
                self._meter.add(LEDGER_FAILURES, 1, failure_kind(error))
                guarded.record_failure(error)
            else:
                guarded.record_success()
            return not self._dirty

    async def close(self) -> None:
        """See `Ledger`."""
        if self._write_task is not None:
            self._write_task.cancel()
            await asyncio.gather(self._write_task, return_exceptions=True)
        self._dirty.update(self._usage)
        guarded = self._connection.guarded
        for _ in range(_CLOSE_ATTEMPTS):
            if self._dirty and guarded is not None and guarded.state == "down":
                await guarded.probe()
            if await self.write():
                break
        if self._dirty and not self._connection.is_unavailable:
            changes = map(self._change, self._dirty)
            lost = sum(change.usage.minus(change.believed).nano_usd for change in changes)
            logger.error("Costs of %s USD could not be written and are lost.", format_usd(lost))
        await self._connection.close()

    def _create_store(self, guarded: GuardedClient) -> None:
        self._store = LedgerStore(guarded.client, self._prefix, guarded.background_timeout_s)
        self._connected.set()

    def _open_or_log(self) -> None:
        """Opens the ledger for usage that came before `open`."""
        try:
            self.open()
        except ConfigurationError as error:
            logger.error("Costs are counted in this process only: %s", error)
            self._opened = True  # don't try again for each request

    def _month_of(self, today: date) -> _Month:
        if (today.year, today.month) != (self._month.first_day.year, self._month.first_day.month):
            self._month = _Month(today)
        return self._month

    def _change(self, row: RowId) -> Change:
        return Change(row, self._written.get(row, _NO_USAGE), self._usage[row])

    async def _write_pending(self, store: LedgerStore) -> None:
        if not self._dirty:
            return
        changes = [self._change(row) for row in self._dirty]
        for change, written in zip(changes, await store.add(self._process, changes), strict=True):
            row = change.row
            if written is None:
                lost = format_usd(self._usage[row].minus(change.believed).nano_usd)
                logger.error("Costs of %s USD on %s are lost: it is too late.", lost, row.day)
                self._forget(row)
                continue
            self._written[row] = written
            if row.day >= self._month.first_day:
                self._month.written[row.key] += written.nano_usd - change.believed.nano_usd
            if written == self._usage[row]:
                self._dirty.discard(row)

    async def _read_month(self, store: LedgerStore) -> None:
        month = self._month_of(self._clock().date())
        totals = await store.month_totals(month.first_day, [*self._watched])
        for key, total in totals.items():
            month.set_total(key, total)

    async def _write_regularly(self) -> None:
        await self._connected.wait()
        verified_at = time.monotonic()
        tidied_at: float | None = None
        while True:
            await self.write()
            now = time.monotonic()
            if now - verified_at >= _VERIFY_EVERY_S:
                verified_at = now
                self._dirty.update(self._usage)
            if self.state == "up" and (tidied_at is None or now - tidied_at >= _TIDY_EVERY_S):
                await self._tidy(warn=tidied_at is None)
                tidied_at = now
            self._forget_past_days(self._clock().date())
            await asyncio.sleep(self._write_every_s)

    def _forget_past_days(self, today: date) -> None:
        for row in [row for row in self._usage if row.day < today - timedelta(1)]:
            if row not in self._dirty:
                self._forget(row)

    def _forget(self, row: RowId) -> None:
        del self._usage[row]
        self._written.pop(row, None)
        self._dirty.discard(row)

    async def _tidy(self, *, warn: bool) -> None:
        """Deletes what is too old from the server; warns of a server that may evict the rest."""
        assert self._store is not None, "Called while the server is up."
        try:
            await self._store.delete_old()
            policy = await self._store.evicting_policy() if warn else None
        except Exception as error:  # the user's ACL may forbid INFO
            self._meter.add(LEDGER_FAILURES, 1, failure_kind(error))
            return
        if policy is not None:
            logger.warning(
                "The server of `cache.url` may evict the costs, because its maxmemory-policy is "
                "%s. Set it to volatile-lfu, which evicts cached vectors only.",
                policy,
            )


def open_ledger(
    config: CacheConfig, identity: ServiceIdentity, meter: Meter, specs: Iterable[ModelSpec]
) -> Ledger:
    """Returns the ledger of a service: on the cache server if there is one, else in memory.

    A service whose models all are free has nothing to write.
    """
    is_free = not any(spec.nano_usd_per_1k_tokens for spec in specs)
    if is_free or config.url.get_secret_value() == "none":
        return MemoryLedger()
    server = SharedServer(config, **identity)
    return SharedLedger(server, prefix=config.prefix, timeout_s=config.timeout_s, meter=meter)
