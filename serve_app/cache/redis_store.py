"""The shared tier, in Redis or Valkey, never in the way: what it can't tell at once is a miss.

Reads of one turn of the event loop leave as one MGET. Writes are queued and leave in the
background. After some failures in a row a breaker opens; then nobody waits until a probe, made in
the background, was answered.
"""

import asyncio
import contextlib
import contextvars
import logging
import re
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from serve_app.errors import Unavailable
from serve_app.metrics import (
    L2_FAILURES,
    L2_READS,
    L2_SECONDS,
    L2_WRITE_DROPS,
    L2_WRITTEN,
    Meter,
)
from serve_app.types import StoreStats
from serve_app.valkey.breaker import Breaker
from serve_app.valkey.client import (
    Client,
    ping,
    close,
    reply_errors,
    reset_connections,
    deadline,
    failure_kind,
    mget,
    pipeline,
    primaries,
    describe_failure,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_MAX_KEYS = 512  # in one MGET: at 1.5 KiB a value about 1 ms of the server's time
_MAX_READS = 4  # in flight, each on a connection of its own
_MAX_WRITES = 256  # in one pipeline
_MAX_WRITE_BYTES = 4 << 20
_MAX_FAILURES = 5
_PROBE_EVERY_S = 0.5
_IDLE_AFTER_S = 5.0
_TICK_S = 0.1
#: After a batch of which nothing was written; a server that is full isn't flooded.
_WRITE_PAUSE_S = 1.0
#: Writes count as accepted again when none was refused for so long; at its memory limit a server
#: refuses some and takes others.
_WRITES_CALM_S = 2.0


class _Read(NamedTuple):
    keys: Sequence[bytes]
    answer: asyncio.Future[list[bytes | None]]


class RedisStore:
    """Opaque values under opaque keys. For one event loop."""

    def __init__(
        self,
        client: Client,
        *,
        prefix: bytes,
        timeout_s: float,
        ttl_s: int | None,
        write_queue_max_bytes: int,
        meter: Meter,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._timeout_s = timeout_s
        #: Of what nobody waits for: it may also wait for a slow new connection.
        self._background_timeout_s = max(10 * timeout_s, 0.5)
        self._ttl: tuple[str | int, ...] = () if ttl_s is None else ("EX", ttl_s)
        self._queue_max_bytes = write_queue_max_bytes
        self._meter = meter
        self._breaker = Breaker(
            max_failures=_MAX_FAILURES, probe_every_s=_PROBE_EVERY_S, idle_after_s=_IDLE_AFTER_S
        )
        self._down_reason: str | None = None
        self._write_reason: str | None = None
        self._refused_at = 0.0
        self._reads: list[_Read] = []
        self._slots = asyncio.Semaphore(_MAX_READS)
        self._calls = set[asyncio.Task[Any]]()
        self._queue: dict[bytes, bytes] = {}
        self._queue_bytes = 0  # with those that are being written
        self._queued = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._background: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether it is asked at all."""
        return "down" if self._breaker.is_open else "up"

    @property
    def writable(self) -> bool:
        """False where it answers reads and refuses writes: full, read-only, without the right."""
        return self._write_reason is None

    @property
    def reason(self) -> str | None:
        """Why it is down or not writable, without secrets; None: nothing is wrong."""
        return self._down_reason if self._breaker.is_open else self._write_reason

    def start(self) -> None:
        """Begins to write and to probe, in the background of the running event loop."""
        self._background = [
            asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
            for coroutine in (self._write_on(), self._watch())
        ]

    async def close(self) -> None:
        """Ends background tasks and connections; what is still queued is lost. Never raises."""
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, *self._calls, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self._background_timeout_s):
                await close(self._client)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the keys' order; None for each that isn't there or didn't come in time."""
        if not keys or self._off:
            return [None] * len(keys)
        loop = asyncio.get_running_loop()
        read = _Read(keys, loop.create_future())
        self._reads.append(read)
        if len(self._reads) == 1:
            loop.call_soon(self._leave)  # with all that is asked in this turn of the loop
        return await read.answer

    def put(self, key: bytes, value: bytes) -> None:
        """Queues a value to be written; drops it when the queue is full or the store is down."""
        if self._off:
            self._meter.add(L2_WRITE_DROPS, 1, "down")
            return
        old = self._queue.get(key)
        more = len(value) - len(old) if old is not None else len(key) + len(value)
        if self._queue_bytes + more > self._queue_max_bytes:
            self._meter.add(L2_WRITE_DROPS, 1, "full")
            return
        self._queue[key] = value
        self._queue_bytes += more
        self._queued.set()
        self._written.clear()

    async def flush(self, timeout_s: float) -> None:
        """Waits until all that was put is written or dropped, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._written.wait()

    async def purge(self) -> int:
        """Deletes all keys below the prefix; their number.

        What is queued is written first, so that it doesn't come back.

        Raises:
            Unavailable: It could not delete all.
        """
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", self._prefix) + b"*"
        deleted = 0
        try:
            await self.flush(self._background_timeout_s)
            async with deadline(self._background_timeout_s):
                nodes = await primaries(self._client)
            for node in nodes:
                cursor, more = 0, True
                while more:
                    async with deadline(self._background_timeout_s):
                        cursor, keys = await node.execute_command(
                            "SCAN", cursor, "MATCH", pattern, "COUNT", 1000
                        )
                        replies = await pipeline(self._client, [("UNLINK", key) for key in keys])
                    if errors := reply_errors(replies):
                        raise errors[0]
                    deleted += sum(replies)
                    more = cursor != 0
        except Exception as error:
            raise Unavailable(
                f"The shared cache could not be emptied: {describe_failure(error)}. Entries deleted until "
                f"then: {deleted}."
            ) from None
        return deleted

    async def stats(self) -> StoreStats | None:
        """What the server tells of itself, all nodes together; None when it doesn't answer."""
        try:
            async with deadline(self._background_timeout_s):
                nodes = await primaries(self._client)
                told = [await node.execute_command("INFO") for node in nodes]
        except Exception as error:
            self._failed(error)
            return None
        names = ("used_memory", "maxmemory", "keyspace_hits", "keyspace_misses", "evicted_keys")
        entries = sum(d["keys"] for info in told for name, d in info.items() if name[:2] == "db")
        return StoreStats(entries, *(sum(int(info[name]) for info in told) for name in names))

    @property
    def _off(self) -> bool:
        return self._closed or self._breaker.is_open

    def _start(self, call: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        # In a context of its own: Ray cancels calls by the context they were made in.
        task = asyncio.get_running_loop().create_task(call, context=contextvars.Context())
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    def _leave(self) -> None:
        reads, self._reads = self._reads, []
        batch: list[_Read] = []
        size = 0
        for read in reads:
            if read.answer.done():
                continue
            if batch and size + len(read.keys) > _MAX_KEYS:
                self._start(self._read(batch))
                batch, size = [], 0
            batch.append(read)
            size += len(read.keys)
        if batch:
            self._start(self._read(batch))

    async def _read(self, reads: Sequence[_Read]) -> None:
        keys = [self._prefix + key for read in reads for key in read.keys]
        values: list[bytes | None] = []
        started = time.perf_counter()
        try:
            async with deadline(self._timeout_s), self._slots:
                while len(values) < len(keys) and not self._off:
                    replies = await mget(self._client, keys[len(values) :][:_MAX_KEYS])
                    errors = reply_errors(replies)
                    if len(errors) == len(replies):
                        raise errors[0]
                    if errors:  # of a cluster, where the nodes answer one by one
                        self._meter.add(L2_FAILURES, 1, failure_kind(errors[0]))
                    values += [r if isinstance(r, bytes) else None for r in replies]
                    self._breaker.succeeded()
        except Exception as error:
            self._failed(error)
        self._meter.add(L2_READS)
        self._meter.add(L2_SECONDS, time.perf_counter() - started)
        values += [None] * (len(keys) - len(values))
        at = 0
        for read in reads:
            if not read.answer.done():
                read.answer.set_result(values[at : at + len(read.keys)])
            at += len(read.keys)

    async def _write_on(self) -> None:
        while True:
            await self._queued.wait()
            while self._queue:
                if not await self._write(self._next_writes()):
                    await asyncio.sleep(_WRITE_PAUSE_S)
            self._queued.clear()
            self._written.set()

    def _next_writes(self) -> list[tuple[bytes, bytes]]:
        writes: list[tuple[bytes, bytes]] = []
        size = 0
        for key, value in self._queue.items():
            size += len(key) + len(value)
            if writes and (len(writes) == _MAX_WRITES or size > _MAX_WRITE_BYTES):
                break
            writes.append((key, value))
        for key, _ in writes:
            del self._queue[key]
        return writes

    async def _write(self, writes: Sequence[tuple[bytes, bytes]]) -> bool:
        commands = [("SET", self._prefix + key, value, *self._ttl) for key, value in writes]
        replies: Sequence[Any]
        try:
            async with deadline(self._background_timeout_s):
                replies = await pipeline(self._client, commands)
        except Exception as error:
            self._meter.add(L2_FAILURES, 1, failure_kind(error))
            replies = [error] * len(writes)
            if not self._off:
                await self._probe()  # for reads, which may go on though writes don't
        self._queue_bytes -= sum(len(key) + len(value) for key, value in writes)
        errors = reply_errors(replies)
        for refused in errors:
            self._meter.add(L2_WRITE_DROPS, 1, failure_kind(refused))
        self._meter.add(L2_WRITTEN, len(writes) - len(errors))
        self._tell_writes(errors)
        return len(errors) < len(writes)

    def _tell_writes(self, errors: Sequence[Exception]) -> None:
        now = time.monotonic()
        refusals = [error for error in errors if failure_kind(error) in ("refused", "timeout")]
        if refusals and not self._off:
            self._refused_at = now
            if self._write_reason is None:
                logger.warning(
                    "The shared cache refuses writes: %s.", describe_failure(refusals[0])
                )
            self._write_reason = f"writes fail: {describe_failure(refusals[0])}"
        elif not errors and self._write_reason and now - self._refused_at >= _WRITES_CALM_S:
            self._write_reason = None
            logger.info("The shared cache takes writes again.")

    async def _watch(self) -> None:
        while True:
            if self._breaker.probe_due():
                await self._probe()
            calm_s = time.monotonic() - self._refused_at
            if self._write_reason and not self._off and calm_s >= _WRITES_CALM_S:
                await self._probe_writing()
            await asyncio.sleep(_TICK_S)

    async def _probe_writing(self) -> None:
        """Without new values nothing else would tell that writes are taken again."""
        try:
            async with deadline(self._background_timeout_s):
                command = ("SET", self._prefix + b"probe", b"", "EX", 1)
                replies = await pipeline(self._client, [command])
        except Exception as error:
            replies = [error]
        self._tell_writes(reply_errors(replies))

    async def _probe(self) -> None:
        try:
            async with deadline(self._background_timeout_s):
                if self._breaker.is_open:
                    await reset_connections(self._client)
                await ping(self._client, self._prefix + b"probe")
        except Exception as error:
            self._failed(error, probe=True)
            return
        if self._breaker.is_open:
            logger.info("The shared cache is up again.")
        self._breaker.probed(True)
        self._down_reason = None

    def _failed(self, error: Exception, *, probe: bool = False) -> None:
        self._meter.add(L2_FAILURES, 1, failure_kind(error))
        was_open = self._breaker.is_open
        if probe:
            self._breaker.probed(False)
        else:
            self._breaker.failed()
        if not self._breaker.is_open:
            return
        self._down_reason = describe_failure(error)
        if not was_open:
            logger.warning("The shared cache is down: %s.", self._down_reason)
            for key, value in self._queue.items():
                self._queue_bytes -= len(key) + len(value)
                self._meter.add(L2_WRITE_DROPS, 1, "down")
            self._queue.clear()
