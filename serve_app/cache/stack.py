"""What one process holds of the cache: its memory, and its way to the tier that all share."""

from collections.abc import Mapping

from serve_app.cache.codec import Codec, CacheDtype
from serve_app.cache.l2 import L2Cache
from serve_app.cache.lookup import EmbedGroup, Lookup
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
from serve_app.types import CacheReport, CacheState, TextGroup, Vectors


class CacheStack:
    """Memory, a second tier where there is one, and the look-up through both."""

    def __init__(
        self,
        spec: ModelSpec,
        rest: EmbedGroup,
        *,
        l1_max_bytes: int,
        dtype: CacheDtype,
        meter: Meter,
        l2: L2Cache | None = None,
    ) -> None:
        """The tiers of one process.

        Args:
            spec: whose vectors are kept.
            rest: answers what is in neither tier.
            l1_max_bytes: the bound of the first.
            storage: what vectors are kept as.
            meter: counts what is found and what is not.
            second: the tier that all processes share; None: another process asks it.
        """
        self._memory = MemoryCache(l1_max_bytes)
        self._second = l2
        self._meter = meter
        self._evictions = 0
        store = None if l2 is None else l2.store
        codec = Codec(spec.dim, dtype)
        lookup = Lookup(spec.space_id, codec, self._memory, rest, store=store, meter=meter)
        self._embed = lookup.embed

    async def embed(self, group: TextGroup) -> Vectors:
        """See `Lookup.embed`."""
        return await self._embed(group)

    def start(self) -> None:
        """Begins what runs beside requests; call it once, in the event loop."""
        if self._second is not None:
            self._second.start()

    def resize(self, l1_max_bytes: int) -> None:
        """Changes the bound of memory; what is cached stays as far as it fits."""
        self._memory.resize(l1_max_bytes)

    @property
    def state(self) -> CacheState:
        """How the second tier is."""
        return CacheState("off") if self._second is None else self._second.state

    def gauges(self) -> Mapping[Metric, float]:
        """What is held now."""
        stats = self._memory.stats()
        self._meter.add(CACHE_EVICTIONS, stats.evictions - self._evictions)
        self._evictions = stats.evictions
        held = {CACHE_BYTES: float(stats.bytes), CACHE_ENTRIES: float(stats.entries)}
        if self._second is not None:
            held[L2_UP] = float(self.state.state == "up")
        return held

    async def report(self) -> CacheReport:
        """What this process knows of its tiers."""
        server = None if self._second is None else await self._second.report()
        return CacheReport(self._memory.stats(), self.state, server)

    async def purge(self) -> int:
        """Forgets all vectors of the space, and tells how many values there were in both tiers.

        Raises:
            Unavailable: the second tier doesn't answer; memory is empty all the same.
        """
        entries = self._memory.clear()
        return entries + (0 if self._second is None else await self._second.purge())

    async def close(self) -> None:
        """Writes what waits to be written."""
        if self._second is not None:
            await self._second.close()
