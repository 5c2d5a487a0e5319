"""Partial hits: what a tier knows of a group of texts is taken, only the rest goes on."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from serve_app.cache.codec import Codec
from serve_app.cache.in_flight import SingleFlight
from serve_app.cache.key import cache_key
from serve_app.cache.memory import MemoryCache
from serve_app.metrics import CACHE_HITS, CACHE_MISSES, COALESCED, Meter
from serve_app.types import NO_TIMINGS, TextGroup, Tier, Timings, VectorRow, Vectors

#: Answers what a tier doesn't know: the next tier.
EmbedGroup = Callable[[TextGroup], Awaitable[Vectors]]


class Store(Protocol):
    """What a lookup needs of the second tier. It never raises and never makes anybody wait."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values by key; None where there is none, or the store doesn't answer."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; returns at once."""
        ...


class Lookup:
    """One process' part of the cache: answers groups of texts of one space from its memory, then
    from the second tier where it has one, and has `rest` answer what is in neither.

    The same class stands in the Ingress, in front of the network, and in CacheLookup, in front of
    the Embedder.
    """

    def __init__(
        self,
        space_id: str,
        codec: Codec,
        memory: MemoryCache,
        rest: EmbedGroup,
        *,
        store: Store | None = None,
        meter: Meter | None = None,
    ) -> None:
        """A lookup.

        Args:
            space_id: what all keys begin with.
            codec: how values are written.
            memory: the first tier.
            rest: the next tier, or the engine.
            store: the second tier.
            meter: counts hits and misses.
        """
        self._space_id = space_id
        self._codec = codec
        self._memory = memory
        self._rest = rest
        self._store = store
        self._flights = SingleFlight(self._compute)
        self._meter = meter or Meter()

    async def embed(self, group: TextGroup) -> Vectors:
        """Vectors for a group of n texts, values of shape (n, dim), in the group's order.

        Raises:
            EmbedServeError: whatever `rest` raises; nothing is kept then.
        """
        if not group.use_cache:
            return self._rounded(await self._rest(group))
        started = time.perf_counter()
        keys = [cache_key(self._space_id, group.prompt, text) for text in group.texts]
        rows = {key: row for key in keys if (row := self._from_memory(key)) is not None}
        self._meter.add(CACHE_HITS, len(rows), "l1")
        if self._store is not None and len(rows) < len(keys):
            await self._from_store(self._store, keys, rows)
        looked_up_s = time.perf_counter() - started
        timings = NO_TIMINGS
        missing = [i for i, key in enumerate(keys) if key not in rows]
        if missing:
            self._meter.add(CACHE_MISSES, len(missing))
            texts = tuple(group.texts[i] for i in missing)
            left = [keys[i] for i in missing]
            landed = await self._flights.run(replace(group, texts=texts), left)
            rows.update(zip(left, landed.rows, strict=True))
            timings = landed.timings
            self._meter.add(COALESCED, landed.shared)
        return Vectors.from_rows(
            [rows[key] for key in keys], timings._replace(cache_s=timings.cache_s + looked_up_s)
        )

    def _from_memory(self, key: bytes) -> VectorRow | None:
        value = self._memory.get(key)
        return None if value is None else self._codec.decode(value, Tier.L1)

    async def _from_store(
        self, store: Store, keys: Sequence[bytes], rows: dict[bytes, VectorRow]
    ) -> None:
        missing = [key for key in keys if key not in rows]
        found = 0
        for key, value in zip(missing, await store.get_many(missing), strict=True):
            row = None if value is None else self._codec.decode(value, Tier.L2)
            if value is not None and row is not None:
                rows[key] = row
                self._memory.put(key, value)
                found += 1
        self._meter.add(CACHE_HITS, found, "l2")

    async def _compute(
        self, group: TextGroup, keys: Sequence[bytes]
    ) -> tuple[list[VectorRow], Timings]:
        fresh = await self._rest(group)
        rows = self._rounded(fresh).rows()
        for key, row in zip(keys, rows, strict=True):
            value = self._codec.encode(row)
            self._memory.put(key, value)
            if self._store is not None and row.tier == Tier.COMPUTED:
                self._store.put(key, value)
        return rows, fresh.timings

    def _rounded(self, vectors: Vectors) -> Vectors:
        return replace(vectors, values=self._codec.round(vectors.values))
