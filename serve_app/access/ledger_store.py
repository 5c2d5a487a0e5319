"""The totals of the ledger in Redis or Valkey: a hash for each day, and one for each month.

A day's hash holds the totals of each row, and next to them what each process has added so far. A
process adds with a script that compares this with what the process believes. So an addition whose
reply was lost isn't counted twice, one that arrives late does nothing, and a server that lost data
in a crash reports what it has left, so that the process adds the rest again.

In a cluster, all entries are in one hash slot. They have no time to live: servers that evict only
what has one, as the embedded server does, never evict them.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from serve_app.access.ledger import LedgerRow, Usage
from serve_app.valkey.client import (
    Client,
    Script,
    deadline,
    execute_pipeline,
    primaries,
    run_scripts,
)

#: How long the totals of a day are kept.
KEEP_DAYS = 400
#: After which nothing can be added to a day, and the entries of processes are deleted.
_CLOSED_AFTER_DAYS = 35
_MAX_CHANGES = 100  # in one script: about 1 ms of the server's time
_MAX_DAYS = 4  # in one pipeline: with 500 rows each about 25 ms of the event loop's time
_PROCESS_MARK = "@"
_NO_USAGE = Usage()
_EPOCH = date(1970, 1, 1)

# KEYS: the hashes of the day and of the month. ARGV: the first day since 1970 on which the day is
# closed; the number of fields of `Usage` and their names; then for each row the entry of the
# process, the end of the names of the totals, the key, what the process believes to have added,
# what it has to add in all, and the differences.
_ADD = """
if redis.call('TIME')[1] / 86400 >= tonumber(ARGV[1]) then return false end
local n, replies = tonumber(ARGV[2]), {}
local at = n + 3
while at <= #ARGV do
  local entry, row, key, believed, usage = unpack(ARGV, at, at + 4)
  local stored = redis.call('HGET', KEYS[1], entry) or ''
  if stored == believed and believed ~= usage then
    for i = 1, n do
      local name, difference = ARGV[2 + i], ARGV[at + 4 + i]
      if difference ~= '0' then
        redis.call('HINCRBY', KEYS[1], name .. row, difference)
        if name == 'nano_usd' then redis.call('HINCRBY', KEYS[2], key, difference) end
      end
    end
    redis.call('HSET', KEYS[1], entry, usage)
    stored = usage
  end
  table.insert(replies, stored)
  at = at + 5 + n
end
return replies
"""
# KEYS: the hash of a day. ARGV: how the names of the entries of processes begin.
_FORGET_PROCESSES = """
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(name, 1, #ARGV[1]) == ARGV[1] then redis.call('HDEL', KEYS[1], name) end
end
"""


class RowId(NamedTuple):
    """Identifies a row of the ledger."""

    day: date
    model: str
    key: str

    @property
    def suffix(self) -> str:
        """Ends the names of the row's entries. The name of a key has no colon, a model's may."""
        return f":{self.key}:{self.model}"


class Change(NamedTuple):
    """What a process adds to a row."""

    row: RowId
    believed: Usage  #: what the process believes to have added already
    usage: Usage  #: what it has to add in all


class LedgerStore:
    """Reads and writes the totals. Methods raise the client's errors, and TimeoutError."""

    def __init__(self, client: Client, prefix: str, timeout_s: float) -> None:
        """A store that makes no calls by itself.

        Args:
            client: connects to the server.
            prefix: precedes every key on the server; services with the same one share totals.
            timeout_s: time limit of each call.
        """
        self._client = client
        self._prefix = prefix
        self._timeout_s = timeout_s

    async def add(self, process: str, changes: Sequence[Change]) -> list[Usage | None]:
        """Adds what a process has to add, exactly once, however often it is repeated.

        Returns:
            For each change what the process has added so far: `usage`, or something else if the
            process believes something wrong. Then nothing was added. None: the day is closed.
        """
        added: list[Usage | None] = []
        for day in dict.fromkeys(change.row.day for change in changes):
            of_day = [change for change in changes if change.row.day == day]
            for start in range(0, len(of_day), _MAX_CHANGES):
                chunk = of_day[start : start + _MAX_CHANGES]
                (reply,) = await self._run([self._script(process, day, chunk)])
                added += [None] * len(chunk) if reply is None else map(_unpack, reply)
        return added

    async def month_totals(self, month: date, keys: Sequence[str]) -> dict[str, int]:
        """Returns what each key has cost in a month, in nano-dollars."""
        (totals,) = await self._pipeline([("HMGET", self._month_hash(month), *keys)])
        return {key: int(total or 0) for key, total in zip(keys, totals, strict=True)}

    async def rows(self, first: date, last: date) -> list[LedgerRow]:
        """Returns the totals from one day to another, by day, model and key."""
        days = [first + timedelta(n) for n in range((last - first).days + 1)]
        rows: list[LedgerRow] = []
        for start in range(0, len(days), _MAX_DAYS):
            chunk = days[start : start + _MAX_DAYS]
            hashes = await self._pipeline([("HGETALL", self._day_hash(day)) for day in chunk])
            for day, entries in zip(chunk, hashes, strict=True):
                rows += sorted(_rows(day, entries))
                await asyncio.sleep(0)  # other requests come in between
        return rows

    async def delete_old(self) -> None:
        """Deletes totals older than `KEEP_DAYS`, and old entries of processes.

        The server's clock decides, so that one machine with a wrong clock deletes nothing.
        """
        today = await self._server_date()
        oldest = today - timedelta(KEEP_DAYS)
        too_old = [oldest - timedelta(n) for n in range(1, KEEP_DAYS)]
        hashes = [self._day_hash(day) for day in too_old]
        hashes += [self._month_hash(day) for day in too_old if day < oldest.replace(day=1)]
        await self._pipeline([("UNLINK", name) for name in dict.fromkeys(hashes)])
        closed = [today - timedelta(_CLOSED_AFTER_DAYS + n) for n in range(_CLOSED_AFTER_DAYS)]
        names = [self._day_hash(day) for day in closed]
        await self._run([Script(_FORGET_PROCESSES, [name], [_PROCESS_MARK]) for name in names])

    async def evicting_policy(self) -> str | None:
        """Returns the server's `maxmemory-policy` if it may evict the totals."""
        async with deadline(self._timeout_s):
            for node in await primaries(self._client):
                memory: Mapping[str, Any] = await node.execute_command("INFO", "memory")
                policy = str(memory.get("maxmemory_policy", ""))
                if policy.startswith("allkeys") and memory.get("maxmemory"):
                    return policy
        return None

    async def _server_date(self) -> date:
        async with deadline(self._timeout_s):
            node, *_ = await primaries(self._client)
            seconds, _ = await node.execute_command("TIME")
        return datetime.fromtimestamp(int(seconds), UTC).date()

    def _script(self, process: str, day: date, changes: Sequence[Change]) -> Script:
        closed_on = (day - _EPOCH).days + _CLOSED_AFTER_DAYS
        args: list[str | int] = [closed_on, len(Usage._fields), *Usage._fields]
        for row, believed, usage in changes:
            args += [f"{_PROCESS_MARK}{process}{row.suffix}", row.suffix, row.key]
            args += [_pack(believed), _pack(usage), *usage.minus(believed)]
        return Script(_ADD, (self._day_hash(day), self._month_hash(day)), args)

    async def _run(self, scripts: Sequence[Script]) -> list[Any]:
        async with deadline(self._timeout_s):
            return _checked(await run_scripts(self._client, scripts))

    async def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with deadline(self._timeout_s):
            return _checked(await execute_pipeline(self._client, commands))

    def _day_hash(self, day: date) -> str:
        return f"{self._prefix}:{{ledger}}:day:{day}"

    def _month_hash(self, day: date) -> str:
        return f"{self._prefix}:{{ledger}}:month:{day:%Y-%m}"


def _checked(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _rows(day: date, entries: Sequence[bytes] | Mapping[bytes, bytes]) -> Iterator[LedgerRow]:
    """Yields the rows in the hash of a day."""
    if not isinstance(entries, Mapping):
        entries = dict(zip(entries[::2], entries[1::2], strict=True))
    fields: dict[tuple[str, str], dict[str, int]] = {}
    for name, total in entries.items():
        field, key, model = name.decode().split(":", 2)
        if field in Usage._fields:
            fields.setdefault((model, key), {})[field] = int(total)
    for (model, key), totals in fields.items():
        yield LedgerRow(day, model, key, Usage(**totals))


def _pack(usage: Usage) -> str:
    return ",".join(map(str, usage)) if any(usage) else ""


def _unpack(stored: bytes) -> Usage:
    return Usage(*map(int, stored.split(b","))) if stored else _NO_USAGE
