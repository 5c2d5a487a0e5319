"""The cache tiers of one process: L1, L2 if it has one, and the lookup through both."""

import math
from collections.abc import Mapping

from serve_app.cache.coalescer import Coalescer, Send
from serve_app.cache.codec import CacheDtype, Codec
from serve_app.cache.l2 import L2Cache
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.report import CacheReport
from serve_app.metrics import (
    CACHE_BYTES,
    CACHE_ENTRIES,
    CACHE_EVICTIONS,
    L2_UP,
    Meter,
    Metric,
)
from serve_app.models import ModelSpec
from serve_app.types import CacheState


class CacheStack:
    """Looks vectors up in this process' tiers, and reports on and purges the tiers together."""

    def __init__(
        self,
        spec: ModelSpec,
        send: Send,
        *,
        l1_max_bytes: int,
        max_in_flight_calls: float = math.inf,
        dtype: CacheDtype,
        meter: Meter,
        l2: L2Cache | None = None,
    ) -> None:
        """The tiers of one process.

        Args:
            spec: the model whose vectors are cached.
            send: embeds texts that are in neither tier.
            l1_max_bytes: memory limit of L1.
            max_in_flight_calls: see `Coalescer`.
            dtype: stored component type of the vectors.
            meter: counts hits and misses.
            l2: the tier that processes share; None: the next tier may have one.
        """
        self._memory = MemoryCache(l1_max_bytes)
        self._l2 = l2
        self._meter = meter
        self._evictions = 0
        self._coalescer = Coalescer(send, max_in_flight_calls)
        lookup = Lookup(
            spec.space_id,
            Codec(spec.dim, dtype),
            self._memory,
            self._coalescer,
            store=None if l2 is None else l2.store,
            meter=meter,
        )
        self.embed, self.embed_encoded = lookup.embed, lookup.embed_encoded

    def start(self) -> None:
        """Starts background tasks; call it once, in the event loop."""
        if self._l2 is not None:
            self._l2.start()

    def apply(self, *, l1_max_bytes: int, max_in_flight_calls: float = math.inf) -> None:
        """Applies new limits. Cached values remain as far as they fit into L1's."""
        self._memory.resize(l1_max_bytes)
        self._coalescer.max_in_flight_calls = max_in_flight_calls

    @property
    def state(self) -> CacheState:
        """The state of L2."""
        return CacheState("off") if self._l2 is None else self._l2.state

    def gauges(self) -> Mapping[Metric, float]:
        """Returns the current values of the gauges, and counts evictions since the last call."""
        stats = self._memory.stats()
        self._meter.add(CACHE_EVICTIONS, stats.evictions - self._evictions)
        self._evictions = stats.evictions
        gauges = {CACHE_BYTES: float(stats.bytes), CACHE_ENTRIES: float(stats.entries)}
        if self._l2 is not None:
            gauges[L2_UP] = float(self.state.state == "up")
        return gauges

    async def report(self) -> CacheReport:
        """Returns statistics of both tiers."""
        store = None if self._l2 is None else await self._l2.stats()
        return CacheReport(self._memory.stats(), self.state, store)

    async def purge(self) -> int:
        """Deletes all vectors of the space from both tiers and returns their number.

        Raises:
            Unavailable: not all values of L2 could be deleted; L1 is empty nevertheless.
        """
        entries = self._memory.clear()
        return entries + (0 if self._l2 is None else await self._l2.purge())

    async def close(self) -> None:
        """Flushes queued writes of L2 and closes it."""
        if self._l2 is not None:
            await self._l2.close()
