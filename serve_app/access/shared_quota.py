"""Quotas that all processes share, in Redis or Valkey.

Each operation is one script, which checks and updates all limits of a key atomically, by the
server's clock. A request in flight has an entry that expires, so a process that dies doesn't hold
its tokens forever. In a cluster, all entries of an API key are in one hash slot.

No request waits for a lost server: while it is down, each process counts by itself, starting with
full buckets.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal, NamedTuple

from serve_app.access.quota import (
    BucketLevel,
    MemoryQuotaStore,
    QuotaStatus,
    QuotaStore,
    Reservation,
    RetryDelays,
)
from serve_app.breaker import Breaker
from serve_app.config import ApiKey, CacheConfig
from serve_app.errors import ConfigurationError
from serve_app.meter import Meter
from serve_app.metrics import QUOTA_FALLBACKS
from serve_app.valkey.client import (
    Client,
    Script,
    deadline,
    failure_kind,
    reply_errors,
    run_scripts,
)
from serve_app.valkey.guarded_client import GuardedClient
from serve_app.valkey.pipeline import ScriptPipeline
from serve_app.valkey.shared_connection import SharedConnection
from serve_app.valkey.shared_server import ServiceIdentity, SharedServer

logger = logging.getLogger(__name__)

#: Not a valid name of an API key, so no key shares its entries.
_PROBE_NAME = "_probe"

# Fields of the hash KEYS[1]: `at`, `requests`, `tokens`, `held`. The sorted set KEYS[2] has one
# member per request in flight, `<id>:<tokens>`, with its time of expiry as score.
_COMMON = """
local requests, tokens, concurrent = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local amount, entry, ttl_s = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local stored = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'held')
local elapsed_s = stored[1] and math.max(0, now - stored[1]) or 0

-- A limit of 0 means no limit.
local function refilled(remaining, limit)
  return math.min(limit, (remaining or limit) + elapsed_s * limit / 60)
end

local function sum_tokens(entries)
  local total = 0
  for _, each in ipairs(entries) do total = total + string.match(each, '%d+$') end
  return total
end

local requests_left, tokens_left = refilled(stored[2], requests), refilled(stored[3], tokens)
local in_flight = 0
if concurrent > 0 then
  local expired = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
  if #expired > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now) end
  -- The server may have evicted either of the two keys.
  if redis.call('ZCARD', KEYS[2]) == 0 then in_flight = 0
  elseif stored[4] then in_flight = stored[4] - sum_tokens(expired)
  else in_flight = sum_tokens(redis.call('ZRANGE', KEYS[2], 0, -1)) end
end

local function save()
  local full_in_s = ttl_s
  local function save_level(name, remaining, limit)
    if limit == 0 then return redis.call('HDEL', KEYS[1], name) end
    redis.call('HSET', KEYS[1], name, remaining)
    full_in_s = math.max(full_in_s, (limit - remaining) * 60 / limit)
  end
  redis.call('HSET', KEYS[1], 'at', now, 'held', in_flight)
  save_level('requests', requests_left, requests)
  save_level('tokens', tokens_left, tokens)
  redis.call('EXPIRE', KEYS[1], math.ceil(full_in_s) + 1)
end

local function reply(admitted)
  return {
    admitted, string.format('%.17g', requests_left), string.format('%.17g', tokens_left), in_flight
  }
end
"""
_RESERVE = (
    _COMMON
    + """
local function exceeds(limit, remaining, wanted)
  return limit > 0 and math.min(wanted, limit) - remaining > 0.000001
end

if exceeds(requests, requests_left, 1) or exceeds(tokens, tokens_left, amount)
    or (concurrent > 0 and in_flight > 0 and in_flight + amount > concurrent) then
  save()
  return reply(0)
end
requests_left, tokens_left = requests_left - 1, tokens_left - amount
if concurrent > 0 then
  in_flight = in_flight + amount
  redis.call('ZADD', KEYS[2], now + ttl_s, entry)
  redis.call('EXPIRE', KEYS[2], ttl_s + 1)
end
save()
return reply(1)
"""
)
# `amount` is the number of tokens used minus the estimate.
_COMMIT = (
    _COMMON
    + """
if concurrent > 0 and redis.call('ZREM', KEYS[2], entry) == 1 then
  in_flight = in_flight - sum_tokens({entry})
end
tokens_left = math.min(tokens, tokens_left - amount)
save()
return reply(1)
"""
)


class _Pipelines(NamedTuple):
    """The pipelines of the two operations."""

    reserves: ScriptPipeline
    commits: ScriptPipeline


class SharedQuotaStore:
    """Counts on a server that all processes share. For one event loop."""

    def __init__(
        self,
        server: SharedServer,
        *,
        prefix: str,
        timeout_s: float,
        meter: Meter,
        reservation_ttl_s: int = 180,
        breaker: Breaker | None = None,
    ) -> None:
        """A store that isn't connected until `open`.

        Args:
            server: provides the client.
            prefix: precedes every key on the server.
            timeout_s: how long a request waits for the server.
            meter: counts requests whose quota was counted in this process.
            reservation_ttl_s: after which a reservation that wasn't committed expires. A request
                that takes longer no longer counts as in flight.
            breaker: see `GuardedClient`.
        """
        self._connection = SharedConnection(
            server,
            timeout_s=timeout_s,
            probe=self._probe,
            on_down=lambda reason: logger.warning(
                "Each process counts quotas by itself: %s.", reason.removesuffix(".")
            ),
            on_up=lambda: logger.info("Quotas are shared again."),
            on_connect=self._create_pipelines,
            breaker=breaker,
        )
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._meter = meter
        self._reservation_ttl_s = reservation_ttl_s
        self._local = MemoryQuotaStore()
        self._pipelines: _Pipelines | None = None
        self._opened = False
        self._process_id = secrets.token_hex(8)
        self._sequence = count()

    @property
    def state(self) -> Literal["up", "down"]:
        """Whether the server counts; `down` also before `open`."""
        return self._connection.state

    def open(self) -> None:
        """See `QuotaStore`."""
        self._connection.open()
        self._opened = True

    async def flush(self, timeout_s: float) -> None:
        """Waits until all queued operations are sent, for at most `timeout_s` each."""
        if self._pipelines is not None:
            for pipeline in self._pipelines:
                await pipeline.flush(timeout_s)

    async def close(self) -> None:
        """See `QuotaStore`."""
        if self._connection.guarded is not None:
            await self.flush(self._connection.guarded.background_timeout_s)
        self._pipelines = None
        await self._connection.close()

    async def reserve(self, key: ApiKey, tokens: int, model: str = "") -> Reservation:
        """See `QuotaStore`."""
        if not self._opened:
            self._open_or_log()
        if self._pipelines is None or self.state == "down":
            return await self._reserve_locally(key, tokens, model, "down")
        entry = f"{self._process_id}.{next(self._sequence)}:{tokens}"
        reserved = Reservation(key, tokens, model, entry=entry)
        reply = self._pipelines.reserves.send(self._script(_RESERVE, reserved, tokens))
        try:
            async with deadline(self._timeout_s):
                admitted, status, in_flight_tokens = _parse_reply(key, await asyncio.shield(reply))
        except asyncio.CancelledError:
            self._refund_late(reply, reserved)
            raise
        except Exception as error:
            if failure_kind(error) == "timeout":
                self._refund_late(reply, reserved)
            return await self._reserve_locally(key, tokens, model, failure_kind(error))
        if not admitted:
            raise RetryDelays.of(key, tokens, status, in_flight_tokens).error(key, tokens, status)
        return replace(reserved, status=status)

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """See `QuotaStore`."""
        if reservation.entry is None:
            await self._local.commit(reservation, tokens)
        else:
            self._send_commit(reservation, tokens)

    def _send_commit(self, reservation: Reservation, tokens: int | None) -> None:
        if self._pipelines is not None and self.state == "up":
            correction = (tokens or 0) - reservation.tokens
            script = self._script(_COMMIT, reservation, correction)
            self._pipelines.commits.send(script)

    def _refund_late(self, reply: asyncio.Future[Any], reservation: Reservation) -> None:
        """Refunds a reservation that the server makes after the request has stopped waiting."""

        def refund(reply: asyncio.Future[Any]) -> None:
            error = reply.exception()
            may_exist = failure_kind(error) == "timeout" if error else reply.result()[0]
            if may_exist:
                self._send_commit(reservation, None)

        reply.add_done_callback(refund)

    async def _reserve_locally(
        self, key: ApiKey, tokens: int, model: str, reason: str
    ) -> Reservation:
        self._meter.add(QUOTA_FALLBACKS, 1, reason)
        return await self._local.reserve(key, tokens, model)

    def _script(self, source: str, reservation: Reservation, amount: int) -> Script:
        key = reservation.key
        limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrent_tokens)
        args: tuple[str | int, ...] = (
            *(limit or 0 for limit in limits),
            amount,
            reservation.entry or "",
            self._reservation_ttl_s,
        )
        return Script(source, self._server_keys(f"{key.name}:{reservation.model}"), args)

    def _server_keys(self, name: str) -> tuple[str, str]:
        key_prefix = f"{self._prefix}:quota:{{{name}}}"
        return f"{key_prefix}:levels", f"{key_prefix}:running"

    def _create_pipelines(self, guarded: GuardedClient) -> None:
        self._pipelines = _Pipelines(
            ScriptPipeline(guarded), ScriptPipeline(guarded, background=True)
        )

    def _open_or_log(self) -> None:
        """Opens the store for a limit that a reloaded file of keys has added."""
        try:
            self.open()
        except ConfigurationError as error:
            logger.error("Each process counts quotas by itself: %s", error)
            self._opened = True  # don't try again for each request

    async def _probe(self, client: Client) -> None:
        """Runs a script that writes: a server may answer reads and refuse writes."""
        script = Script(_COMMIT, self._server_keys(_PROBE_NAME), (1, 0, 0, 0, "", 1))
        if errors := reply_errors(await run_scripts(client, [script])):
            raise errors[0]


def _parse_reply(key: ApiKey, reply: Sequence[Any]) -> tuple[bool, QuotaStatus, float]:
    """Returns whether the request is admitted, the key's status and its tokens in flight."""
    admitted, requests_left, tokens_left, in_flight_tokens = reply
    requests, tokens = key.requests_per_minute, key.tokens_per_minute
    status = QuotaStatus(
        None if requests is None else BucketLevel(requests, float(requests_left)),
        None if tokens is None else BucketLevel(tokens, float(tokens_left)),
    )
    return bool(admitted), status, float(in_flight_tokens)


def open_quota_store(config: CacheConfig, identity: ServiceIdentity, meter: Meter) -> QuotaStore:
    """Returns the quota store of API keys: on the cache server if there is one, else in memory.

    The store connects once a key has a limit.
    """
    if config.url.get_secret_value() == "none":
        return MemoryQuotaStore()
    server = SharedServer(config, **identity)
    return SharedQuotaStore(server, prefix=config.prefix, timeout_s=config.timeout_s, meter=meter)
