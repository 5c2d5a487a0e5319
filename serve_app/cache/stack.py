"""The cache tiers of one process: L1, L2 if it has one, and the lookup through both."""

from collections.abc import Mapping

from serve_app.cache.codec import CacheDtype, Codec
from serve_app.cache.l2 import L2Cache
from serve_app.cache.lookup import Lookup, NextTier
from serve_app.cache.memory import MemoryCache
from serve_app.metrics import (
    CACHE_BYTES,
    CACHE_ENTRIES,
    CACHE_EVICTIONS,
    L2_UP,
    Meter,
    Metric,
)
from serve_app.models import ModelSpec
from serve_app.types import CacheReport, CacheState


class CacheStack:
    """Looks vectors up in this process' tiers, and reports on and purges the tiers together."""

    def __init__(
        self,
        spec: ModelSpec,
        next_tier: NextTier,
        *,
        l1_max_bytes: int,
        dtype: CacheDtype,
        meter: Meter,
        l2: L2Cache | None = None,
    ) -> None:
        """The tiers of one process.

        Args:
            spec: the model whose vectors are cached.
            next_tier: embeds texts that are in neither tier.
            l1_max_bytes: memory limit of L1.
            dtype: stored component type of the vectors.
            meter: counts hits and misses.
            l2: the tier that processes share; None: `next_tier` may have one.
        """
        self._memory = MemoryCache(l1_max_bytes)
        self._l2 = l2
        self._meter = meter
        self._evictions = 0
        lookup = Lookup(
            spec.space_id,
            Codec(spec.dim, dtype),
            self._memory,
            next_tier,
            store=None if l2 is None else l2.store,
            meter=meter,
        )
        self.embed = lookup.embed

    def start(self) -> None:
        """Starts background tasks; call it once, in the event loop."""
        if self._l2 is not None:
            self._l2.start()

    def resize(self, l1_max_bytes: int) -> None:
        """Changes the memory limit of L1 and evicts values that exceed it."""
        self._memory.resize(l1_max_bytes)

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
