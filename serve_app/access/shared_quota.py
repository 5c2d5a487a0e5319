"""Quotas that all processes share, in Redis or Valkey, never in the way of a request.

Each operation is one script, so that it happens at once for all limits of a key. The time is the
server's: the clocks of the processes don't matter. What runs leaves an entry that expires, so a
process that dies doesn't keep its tokens for ever. All of one key lies in one slot of a cluster.

While the server can't be asked, each process counts by itself, with a full minute's worth.
"""

import asyncio
import contextlib
import contextvars
import logging
import secrets
from collections.abc import Sequence
from itertools import count
from typing import Any, Literal, NamedTuple

from serve_app.access.quota import (
    BucketLevel,
    MemoryQuotaStore,
    QuotaStatus,
    Reservation,
    RetryDelays,
)
from serve_app.config import ApiKey
from serve_app.errors import ConfigurationError
from serve_app.metrics import QUOTA_FALLBACKS, Meter
from serve_app.valkey.breaker import Breaker
from serve_app.valkey.client import (
    Client,
    Script,
    close,
    reply_errors,
    reset_connections,
    deadline,
    failure_kind,
    run,
    describe_failure,
)
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.pipeline import ScriptPipeline
from serve_app.valkey.shared_server import SharedServer

logger = logging.getLogger(__name__)

_MAX_FAILURES = 5
_PROBE_EVERY_S = 0.5
_IDLE_AFTER_S = 5.0
_TICK_S = 0.1
#: How long the entry of a request stays that nobody settles. One that really takes longer no
#: longer counts as in work, which is the smaller evil.
_HOLD_S = 180
#: No key is called so.
_PROBE = "_probe"

_COMMON = """
local requests, tokens, concurrent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local amount, entry, hold_s = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local kept = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'held')
local passed_s = kept[1] and math.max(0, now - kept[1]) or 0

-- A limit of 0 is none.
local function level(left, limit)
  return math.min(limit, (left or limit) + passed_s * limit / 60)
end

local function sum(entries)
  local total = 0
  for _, each in ipairs(entries) do total = total + string.match(each, '%d+$') end
  return total
end

local requests_left, tokens_left = level(kept[2], requests), level(kept[3], tokens)
local held = 0
if concurrent > 0 then
  local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
  if #gone > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now) end
  -- The server may have dropped one of the two keys for room.
  if redis.call('ZCARD', KEYS[2]) == 0 then held = 0
  elseif kept[4] then held = kept[4] - sum(gone)
  else held = sum(redis.call('ZRANGE', KEYS[2], 0, -1)) end
end

local function keep()
  local full_s = hold_s
  local function keep_level(name, left, limit)
    if limit == 0 then return redis.call('HDEL', KEYS[1], name) end
    redis.call('HSET', KEYS[1], name, left)
    full_s = math.max(full_s, (limit - left) * 60 / limit)
  end
  redis.call('HSET', KEYS[1], 'at', now, 'held', held)
  keep_level('requests', requests_left, requests)
  keep_level('tokens', tokens_left, tokens)
  redis.call('EXPIRE', KEYS[1], math.ceil(full_s) + 1)
end

local function answer(fits)
  return {fits, string.format('%.17g', requests_left), string.format('%.17g', tokens_left), held}
end
"""
_TAKE = (
    _COMMON
    + """
local function short(limit, left, wanted)
  return limit > 0 and math.min(wanted, limit) - left > 0.000001
end

if short(requests, requests_left, 1) or short(tokens, tokens_left, amount)
    or (concurrent > 0 and held > 0 and held + amount > concurrent) then
  keep()
  return answer(0)
end
requests_left, tokens_left = requests_left - 1, tokens_left - amount
if concurrent > 0 then
  held = held + amount
  redis.call('ZADD', KEYS[2], now + hold_s, entry)
  redis.call('EXPIRE', KEYS[2], hold_s + 1)
end
keep()
return answer(1)
"""
)
#: Its amount is what was used more than was charged.
_SETTLE = (
    _COMMON
    + """
if concurrent > 0 and redis.call('ZREM', KEYS[2], entry) == 1 then held = held - sum({entry}) end
tokens_left = math.min(tokens, tokens_left - amount)
keep()
return answer(1)
"""
)


class _Asked(NamedTuple):
    """The server, once there is one, and the two ways to it."""

    client: Client
    takes: ScriptPipeline
    settlements: ScriptPipeline


class SharedQuotaStore:
    """Counts on a server that all processes ask. For one event loop."""

    def __init__(
        self, server: SharedServer, *, prefix: str, timeout_s: float, meter: Meter
    ) -> None:
        """Asks nothing before it is opened.

        Args:
            server: which one.
            prefix: what all keys on it begin with.
            timeout_s: how long a request waits for it.
            meter: counts what it could not answer.
        """
        self._server = server
        self._prefix = prefix
        self._timeout_s = timeout_s
        #: Of what nobody waits for.
        self._background_timeout_s = max(10 * timeout_s, 0.5)
        self._meter = meter
        self._memory = MemoryQuotaStore()
        self._asked: _Asked | None = None
        self._breaker = Breaker(
            max_failures=_MAX_FAILURES, probe_every_s=_PROBE_EVERY_S, idle_after_s=_IDLE_AFTER_S
        )
        self._opened = False
        self._watching: asyncio.Task[None] | None = None
        self._process = secrets.token_hex(8)
        self._numbers = count()

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether the server is asked at all."""
        return "down" if self._asked is None or self._breaker.is_open else "up"

    def open(self) -> None:
        """See `QuotaStore`."""
        if self._opened:
            return
        if not self._server.is_embedded:
            self._asked = self._ask(self._server.connect())
        self._opened = True
        self._watching = asyncio.get_running_loop().create_task(
            self._watch(), context=contextvars.Context()
        )

    async def close(self) -> None:
        """See `QuotaStore`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        asked, self._asked = self._asked, None
        if asked is not None:
            for line in (asked.takes, asked.settlements):
                await line.close(self._background_timeout_s)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._background_timeout_s):
                    await close(asked.client)
        self._server.release()

    async def reserve(self, key: ApiKey, tokens: int) -> Reservation:
        """See `QuotaStore`."""
        if not self._opened:
            self._open_late()
        if self._asked is None or self._breaker.is_open:
            return await self._by_itself(key, tokens, "down")
        entry = f"{self._process}.{next(self._numbers)}:{tokens}"
        reply = self._asked.takes.send(self._script(_TAKE, key, tokens, entry))
        try:
            async with deadline(self._timeout_s):
                fits, status, held = _read(key, await asyncio.shield(reply))
        except asyncio.CancelledError:
            self._give_back_late(reply, Reservation(key, tokens, entry=entry))
            raise
        except Exception as error:
            if failure_kind(error) == "timeout":
                self._give_back_late(reply, Reservation(key, tokens, entry=entry))
            return await self._by_itself(key, tokens, failure_kind(error))
        if not fits:
            raise RetryDelays.of(key, tokens, status, held).refusal(key, tokens, status)
        return Reservation(key, tokens, status, entry)

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """See `QuotaStore`."""
        if reservation.entry is None:
            await self._memory.commit(reservation, tokens)
        else:
            self._settle(reservation, tokens)

    def _settle(self, reservation: Reservation, tokens: int | None) -> None:
        if self._asked is not None and not self._breaker.is_open:
            more = (tokens or 0) - reservation.tokens
            script = self._script(_SETTLE, reservation.key, more, reservation.entry or "")
            self._asked.settlements.send(script)

    def _give_back_late(self, reply: asyncio.Future[Any], reservation: Reservation) -> None:
        """For a request that no longer waits: the server may let it in all the same, only late."""

        def arrived(reply: asyncio.Future[Any]) -> None:
            error = reply.exception()
            if failure_kind(error) == "timeout" if error else reply.result()[0]:
                self._settle(reservation, None)

        reply.add_done_callback(arrived)

    async def _by_itself(self, key: ApiKey, tokens: int, reason: str) -> Reservation:
        self._meter.add(QUOTA_FALLBACKS, 1, reason)
        return await self._memory.reserve(key, tokens)

    def _script(self, source: str, key: ApiKey, amount: int, entry: str) -> Script:
        limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrent_tokens)
        args: tuple[str | int, ...] = (*(limit or 0 for limit in limits), amount, entry, _HOLD_S)
        return Script(source, self._keys(key.name), args)

    def _keys(self, name: str) -> tuple[str, str]:
        start = f"{self._prefix}:quota:{{{name}}}"
        return f"{start}:levels", f"{start}:running"

    def _ask(self, client: Client | None) -> _Asked | None:
        if client is None:
            return None
        return _Asked(
            client,
            ScriptPipeline(client, self._timeout_s, self._take_ended),
            ScriptPipeline(client, self._background_timeout_s, self._settlement_ended),
        )

    def _open_late(self) -> None:
        """For a limit that has come by the file of keys, when nobody is there to hear an error."""
        try:
            self.open()
        except ConfigurationError as error:
            logger.error("Each process counts quotas by itself: %s", error)
            self._opened = True  # as far as it can be

    async def _watch(self) -> None:
        if self._asked is None:
            try:
                self._asked = self._ask(await asyncio.to_thread(self._server.connect))
            except (EmbeddedUnavailable, ConfigurationError) as error:
                logger.warning("Each process counts quotas by itself: %s", error)
        if self._asked is None:
            return
        mending = asyncio.create_task(self._server.keep_alive(lambda: self.state == "up"))
        try:
            while True:
                if self._breaker.probe_due():
                    await self._probe(self._asked.client)
                await asyncio.sleep(_TICK_S)
        finally:
            mending.cancel()

    async def _probe(self, client: Client) -> None:
        """By a script that writes: a server may answer questions and take nothing."""
        try:
            async with deadline(self._background_timeout_s):
                if self._breaker.is_open:
                    await reset_connections(client)
                script = Script(_SETTLE, self._keys(_PROBE), (1, 0, 0, 0, "", 1))
                if errors := reply_errors(await run(client, [script])):
                    raise errors[0]
        except Exception as error:
            self._failed(error, probe=True)
            return
        if self._breaker.is_open:
            logger.info("Quotas are shared again.")
        self._breaker.probed(True)

    def _take_ended(self, error: Exception | None) -> None:
        if error is None:
            self._breaker.succeeded()
        else:
            self._failed(error)

    def _settlement_ended(self, error: Exception | None) -> None:
        # It has more time than a request, so that it was answered says nothing.
        if error is not None:
            self._failed(error)

    def _failed(self, error: Exception, *, probe: bool = False) -> None:
        was_open = self._breaker.is_open
        if probe:
            self._breaker.probed(False)
        else:
            self._breaker.failed()
        if self._breaker.is_open and not was_open:
            logger.warning("Each process counts quotas by itself: %s.", describe_failure(error))


def _read(key: ApiKey, reply: Sequence[Any]) -> tuple[bool, QuotaStatus, float]:
    """A script's answer: whether the request fits, how the key stands, what it has in work."""
    fits, requests_left, tokens_left, held = reply
    requests, tokens = key.requests_per_minute, key.tokens_per_minute
    status = QuotaStatus(
        None if requests is None else BucketLevel(requests, float(requests_left)),
        None if tokens is None else BucketLevel(tokens, float(tokens_left)),
    )
    return bool(fits), status, float(held)
