"""The shared cache in Redis or Valkey: a read that isn't answered in time is a miss.

Reads of one turn of the event loop are sent as one MGET. Writes are queued and sent in the
background. While the server is down, reads miss and writes are dropped without a call.
"""

import asyncio
import contextlib
import contextvars
import logging
import math
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from serve_app.breaker import Breaker
from serve_app.cache.report import StoreStats
from serve_app.coalescer import Coalescer, Deliver
from serve_app.errors import Unavailable
from serve_app.meter import Meter
from serve_app.metrics import L2_FAILURES, L2_WRITE_DROPS, L2_WRITTEN, LOOKUP_DURATION
from serve_app.valkey.client import (
    Client,
    deadline,
    describe_failure,
    execute_pipeline,
    failure_kind,
    mget,
    ping,
    primaries,
    reply_errors,
)
from serve_app.valkey.guarded_client import GuardedClient

logger = logging.getLogger(__name__)

_MAX_KEYS = 512  # in one MGET: at 1.5 KiB a value about 1 ms of the server's time
_MAX_READS = 4  # in flight, each on a connection of its own
_MAX_WRITES = 256  # in one pipeline
_MAX_WRITE_BYTES = 4 << 20
_TICK_S = 0.1
#: Ten years: a server that evicts only what has a time to live must be able to evict each value.
_UNLIMITED_TTL_S = 10 * 366 * 24 * 3600
#: Pause after a batch in which every write failed, so that a full server isn't flooded.
_WRITE_BACKOFF_S = 1.0
#: Time without a refused write after which the server counts as writable. At its memory limit, a
#: server refuses some writes and accepts others.
_WRITABLE_AFTER_S = 2.0


class _Read(NamedTuple):
    keys: Sequence[bytes]
    unwritten: list[bytes | None]  # values that the server doesn't have yet
    values: asyncio.Future[list[bytes | None]]

    def resolve(self, values: Sequence[bytes | None] | Exception = ()) -> None:
        """Sets the result, from the values that the server has; without any, all are missing."""
        if not self.values.done():
            found = zip_longest(() if isinstance(values, Exception) else values, self.unwritten)
            self.values.set_result([value if own is None else own for value, own in found])


class _Write(NamedTuple):
    value: bytes
    model: str


class RedisStore:
    """Stores opaque values under opaque keys. For one event loop."""

    def __init__(
        self,
        client: Client,
        *,
        prefix: bytes,
        timeout_s: float,
        ttl_s: int | None,
        write_queue_max_bytes: int,
        meter: Meter,
        breaker: Breaker | None = None,
    ) -> None:
        """A store that makes no calls in the background until `start`.

        Args:
            client: connects to the server.
            prefix: precedes every key on the server.
            timeout_s: time limit of a read.
            ttl_s: lifetime of a value; None: until the server evicts it.
            write_queue_max_bytes: limit of queued keys and values; further writes are dropped.
            meter: counts reads, writes and failures.
            breaker: see `GuardedClient`.
        """
        self._prefix = prefix
        self._ttl_s = _UNLIMITED_TTL_S if ttl_s is None else ttl_s
        self._queue_max_bytes = write_queue_max_bytes
        self._meter = meter
        self._guarded = GuardedClient(
            client,
            timeout_s=timeout_s,
            probe=lambda client: ping(client, prefix + b"probe"),
            on_failure=lambda error: meter.add(L2_FAILURES, 1, failure_kind(error)),
            on_down=self._on_down,
            on_up=lambda: logger.info("The shared cache is up again."),
            breaker=breaker,
        )
        self._write_failure: str | None = None
        self._write_failed_at = 0.0
        # A read that waits for a connection misses after its own time limit, not after that of the
        # reads before it: so the limit is on connections and not on calls.
        self._reads: Coalescer[_Read, Sequence[bytes | None]] = Coalescer(
            self._read, math.inf, max_size=_MAX_KEYS, size=lambda read: len(read.keys)
        )
        self._read_slots = asyncio.Semaphore(_MAX_READS)
        self._queue: dict[bytes, _Write] = {}
        self._writing: dict[bytes, _Write] = {}  # the batch that is being written
        self._queue_bytes = 0  # including the batch that is being written
        self._queue_filled = asyncio.Event()
        self._queue_flushed = asyncio.Event()
        self._queue_flushed.set()
        self._background_tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether reads and writes reach the server."""
        return self._guarded.state

    @property
    def writable(self) -> bool:
        """False if the server refuses writes: it is full, read-only, or the user lacks rights."""
        return self._write_failure is None

    @property
    def reason(self) -> str | None:
        """Why the server is down or not writable, without secrets; None if it works."""
        return self._guarded.down_reason or self._write_failure

    def start(self) -> None:
        """Starts writing and probing, in the background of the running event loop."""
        self._guarded.start()
        self._background_tasks = [
            _create_task(self._run_writer()),
            _create_task(self._watch_writes()),
        ]

    async def close(self) -> None:
        """Stops background tasks and closes connections; drops queued writes. Never raises."""
        self._closed = True
        for task in self._background_tasks:
            task.cancel()
        await asyncio.gather(*self._background_tasks, return_exceptions=True)
        await self._reads.flush(self._guarded.background_timeout_s)
        await self._guarded.close()

    def get_many(self, keys: Sequence[bytes]) -> asyncio.Future[list[bytes | None]]:
        """Returns the values in the keys' order; None if missing or not received in time.

        A value that is still to be written is read from the queue.
        """
        writes = [self._queue.get(key) or self._writing.get(key) for key in keys]
        unwritten = [None if write is None else write.value for write in writes]
        read = _Read(keys, unwritten, asyncio.get_running_loop().create_future())
        if None not in unwritten or not self._available:
            read.resolve()
        else:
            self._reads.submit(read, read.resolve)
        return read.values

    def put(self, key: bytes, value: bytes, model: str) -> None:
        """Queues a write; drops it if the queue is full or the server is down.

        Args:
            key: of the value.
            value: replaces the one that the server has.
            model: whose output the value is; the metrics of writes name it.
        """
        if not self._available:
            self._meter.add(L2_WRITE_DROPS, 1, "down", model)
            return
        queued = self._queue.get(key)
        added = len(key) + len(value) if queued is None else len(value) - len(queued.value)
        if self._queue_bytes + added > self._queue_max_bytes:
            self._meter.add(L2_WRITE_DROPS, 1, "full", model)
            return
        self._queue[key] = _Write(value, model)
        self._queue_bytes += added
        self._queue_filled.set()
        self._queue_flushed.clear()

    async def flush(self, timeout_s: float) -> None:
        """Waits until all queued writes are sent or dropped, for at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue_flushed.wait()

    async def purge(self, key_prefix: bytes) -> int:
        """Deletes all values whose keys begin with `key_prefix` and returns their number.

        Queued writes are sent first; otherwise they would be written after the purge.

        Raises:
            Unavailable: not all keys could be deleted.
        """
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix + key_prefix) + b"*"
        client, timeout_s = self._guarded.client, self._guarded.background_timeout_s
        deleted = 0
        try:
            await self.flush(timeout_s)
            async with deadline(timeout_s):
                nodes = await primaries(client)
            for node in nodes:
                cursor, more = 0, True
                while more:
                    async with deadline(timeout_s):
                        cursor, keys = await node.execute_command(
                            "SCAN", cursor, "MATCH", pattern, "COUNT", 1000
                        )
                        replies = await execute_pipeline(client, [("UNLINK", key) for key in keys])
                    if errors := reply_errors(replies):
                        raise errors[0]
                    deleted += sum(replies)
                    more = cursor != 0
        except Exception as error:
            raise Unavailable(
                f"The shared cache could not be emptied: {describe_failure(error)}. Entries "
                f"deleted until then: {deleted}."
            ) from None
        return deleted

    async def stats(self) -> StoreStats | None:
        """Returns the server's statistics, summed over its nodes; None if it doesn't answer."""
        try:
            async with deadline(self._guarded.background_timeout_s):
                nodes = await primaries(self._guarded.client)
                infos = [await node.execute_command("INFO") for node in nodes]
        except Exception as error:
            self._guarded.record_failure(error)
            return None
        names = ("used_memory", "maxmemory", "keyspace_hits", "keyspace_misses", "evicted_keys")
        entries = sum(db["keys"] for info in infos for name, db in info.items() if name[:2] == "db")
        return StoreStats(entries, *(sum(int(info[name]) for info in infos) for name in names))

    @property
    def _available(self) -> bool:
        return not self._closed and self.state == "up"

    async def _read(self, batch: Sequence[_Read], deliver: Deliver[Sequence[bytes | None]]) -> None:
        reads = [(i, read.keys) for i, read in enumerate(batch) if not read.values.done()]
        keys = [self._prefix + key for _, keys in reads for key in keys]
        values: list[bytes | None] = []
        started = time.perf_counter()
        try:
            async with deadline(self._guarded.timeout_s), self._read_slots:
                while len(values) < len(keys) and self._available:
                    replies = await mget(self._guarded.client, keys[len(values) :][:_MAX_KEYS])
                    errors = reply_errors(replies)
                    if len(errors) == len(replies):
                        raise errors[0]
                    if errors:  # some nodes of a cluster failed
                        self._meter.add(L2_FAILURES, 1, failure_kind(errors[0]))
                    values += [r if isinstance(r, bytes) else None for r in replies]
                    self._guarded.record_success()
        except Exception as error:
            self._guarded.record_failure(error)
        self._meter.observe(LOOKUP_DURATION, time.perf_counter() - started, "l2")
        start = 0
        for i, read_keys in reads:
            deliver(i, values[start : start + len(read_keys)])
            start += len(read_keys)

    async def _run_writer(self) -> None:
        while True:
            await self._queue_filled.wait()
            while self._queue:
                self._writing = self._next_batch()
                written = await self._write(self._writing)
                self._writing = {}
                if not written:
                    await asyncio.sleep(_WRITE_BACKOFF_S)
            self._queue_filled.clear()
            self._queue_flushed.set()

    def _next_batch(self) -> dict[bytes, _Write]:
        batch: dict[bytes, _Write] = {}
        size = 0
        for key, write in self._queue.items():
            size += len(key) + len(write.value)
            if batch and (len(batch) == _MAX_WRITES or size > _MAX_WRITE_BYTES):
                break
            batch[key] = write
        for key in batch:
            del self._queue[key]
        return batch

    async def _write(self, batch: Mapping[bytes, _Write]) -> bool:
        """Writes a batch and returns whether any value was written."""
        commands = [
            ("SET", self._prefix + key, write.value, "EX", self._ttl_s)
            for key, write in batch.items()
        ]
        replies: Sequence[Any]
        try:
            async with deadline(self._guarded.background_timeout_s):
                replies = await execute_pipeline(self._guarded.client, commands)
        except Exception as error:
            self._meter.add(L2_FAILURES, 1, failure_kind(error))
            replies = [error] * len(batch)
            if self._available:
                await self._guarded.probe()  # reads may work although writes fail
        for (key, write), reply in zip(batch.items(), replies, strict=True):
            self._queue_bytes -= len(key) + len(write.value)
            if isinstance(reply, Exception):
                self._meter.add(L2_WRITE_DROPS, 1, failure_kind(reply), write.model)
            else:
                self._meter.add(L2_WRITTEN, 1, write.model)
        errors = reply_errors(replies)
        self._update_writable(errors)
        return len(errors) < len(batch)

    def _update_writable(self, errors: Sequence[Exception]) -> None:
        refusals = [error for error in errors if failure_kind(error) in ("refused", "timeout")]
        if refusals and self._available:
            self._write_failed_at = time.monotonic()
            if self._write_failure is None:
                logger.warning(
                    "The shared cache refuses writes: %s.", describe_failure(refusals[0])
                )
            self._write_failure = f"writes fail: {describe_failure(refusals[0])}"
        elif not errors and self._write_failure and self._write_recheck_due():
            self._write_failure = None
            logger.info("The shared cache accepts writes again.")

    def _write_recheck_due(self) -> bool:
        return time.monotonic() - self._write_failed_at >= _WRITABLE_AFTER_S

    async def _watch_writes(self) -> None:
        """Probes a server that refused writes: without new values, no write would succeed."""
        while True:
            if self._write_failure and self._available and self._write_recheck_due():
                await self._probe_writes()
            await asyncio.sleep(_TICK_S)

    async def _probe_writes(self) -> None:
        try:
            async with deadline(self._guarded.background_timeout_s):
                command = ("SET", self._prefix + b"probe", b"", "EX", 1)
                replies = await execute_pipeline(self._guarded.client, [command])
        except Exception as error:
            replies = [error]
        self._update_writable(reply_errors(replies))

    def _on_down(self, reason: str) -> None:
        logger.warning("The shared cache is down: %s.", reason)
        for key, write in self._queue.items():
            self._queue_bytes -= len(key) + len(write.value)
            self._meter.add(L2_WRITE_DROPS, 1, "down", write.model)
        self._queue.clear()


def _create_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # In an empty context: Ray cancels calls by the context they were made in.
    return asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
