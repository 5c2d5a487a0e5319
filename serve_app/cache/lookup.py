"""Looks groups of texts up in the cache tiers and computes only what is missing.

group → L1 (memory) → L2 (shared store) → next tier → `Vectors`
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from serve_app.cache.codec import Codec
from serve_app.cache.in_flight import Computed, SingleFlight
from serve_app.cache.key import cache_key
from serve_app.cache.memory import MemoryCache
from serve_app.metrics import CACHE_HITS, CACHE_MISSES, COALESCED, Meter
from serve_app.types import NO_TIMINGS, TextGroup, Tier, VectorRow, Vectors

#: Embeds texts that no tier of this process holds: in another process' tiers, or with the engine.
NextTier = Callable[[TextGroup], Awaitable[Vectors]]


class Store(Protocol):
    """The L2 store of a lookup. Its methods never raise and never wait for a slow server."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns a value for each key; None if it is missing or the server doesn't answer."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Queues a value to be written."""
        ...


class Lookup:
    """The cache of one space in one process: L1, L2 if there is one, and single flight.

    Both the Ingress and CacheLookup have one, the latter in front of the Embedder.
    """

    def __init__(
        self,
        space_id: str,
        codec: Codec,
        memory: MemoryCache,
        next_tier: NextTier,
        *,
        store: Store | None = None,
        meter: Meter | None = None,
    ) -> None:
        """A lookup.

        Args:
            space_id: the space of the vectors; part of every key.
            codec: encodes the values.
            memory: the L1 cache.
            next_tier: embeds texts that are in neither tier.
            store: the L2 cache.
            meter: counts hits and misses.
        """
        self._space_id = space_id
        self._codec = codec
        self._memory = memory
        self._next_tier = next_tier
        self._store = store
        self._flights = SingleFlight(self._compute)
        self._meter = meter or Meter()

    async def embed(self, group: TextGroup) -> Vectors:
        """Returns the vectors of a group of n texts, with values of shape (n, dim), in order.

        Raises:
            EmbedServeError: as raised by `next_tier`; nothing is cached then.
        """
        if not group.use_cache:
            return self._rounded(await self._next_tier(group))
        started = time.perf_counter()
        keys = [cache_key(self._space_id, group.prompt, text) for text in group.texts]
        rows = {key: row for key in keys if (row := self._read_memory(key)) is not None}
        self._meter.add(CACHE_HITS, len(rows), "l1")
        if self._store is not None and len(rows) < len(keys):
            await self._read_store(self._store, keys, rows)
        lookup_s = time.perf_counter() - started
        timings = NO_TIMINGS
        missing = [i for i, key in enumerate(keys) if key not in rows]
        if missing:
            self._meter.add(CACHE_MISSES, len(missing))
            texts = tuple(group.texts[i] for i in missing)
            missing_keys = [keys[i] for i in missing]
            result = await self._flights.run(replace(group, texts=texts), missing_keys)
            rows.update(zip(missing_keys, result.rows, strict=True))
            timings = result.timings
            self._meter.add(COALESCED, result.shared)
        return Vectors.from_rows(
            [rows[key] for key in keys], timings._replace(cache_s=timings.cache_s + lookup_s)
        )

    def _read_memory(self, key: bytes) -> VectorRow | None:
        value = self._memory.get(key)
        return None if value is None else self._codec.decode(value, Tier.L1)

    async def _read_store(
        self, store: Store, keys: Sequence[bytes], rows: dict[bytes, VectorRow]
    ) -> None:
        """Adds the rows of missing keys that the store has, and copies them into memory."""
        missing = [key for key in keys if key not in rows]
        hits = 0
        for key, value in zip(missing, await store.get_many(missing), strict=True):
            row = None if value is None else self._codec.decode(value, Tier.L2)
            if value is not None and row is not None:
                rows[key] = row
                self._memory.put(key, value)
                hits += 1
        self._meter.add(CACHE_HITS, hits, "l2")

    async def _compute(self, group: TextGroup, keys: Sequence[bytes]) -> Computed:
        vectors = await self._next_tier(group)
        rows = self._rounded(vectors).rows()
        for key, row in zip(keys, rows, strict=True):
            value = self._codec.encode(row)
            self._memory.put(key, value)
            if self._store is not None and row.tier == Tier.COMPUTED:
                self._store.put(key, value)
        return rows, vectors.timings

    def _rounded(self, vectors: Vectors) -> Vectors:
        return replace(vectors, values=self._codec.round(vectors.values))
