"""The cache tiers of one process: L1, L2 if it has one, and a lookup for each model."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from serve_app.cache.coalescer import GroupCoalescer, Send
from serve_app.cache.codec import task_codecs
from serve_app.cache.in_flight import Flight
from serve_app.cache.l2 import L2Cache
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.report import CacheReport, MemoryStats, ModelCacheStats
from serve_app.config.deployments import EvictionName
from serve_app.meter import Meter
from serve_app.metrics import (
    CACHE_BYTES,
    CACHE_ENTRIES,
    CACHE_EVICTIONS,
    CACHE_HITS,
    CACHE_MISSES,
    L2_UP,
    Metric,
)
from serve_app.models import ModelSpec
from serve_app.types import CacheDtype, CacheState


class CacheStack:
    """The tiers of one process, which its models share; reports on and purges them together.

    Each model has its own lookup: texts of two models never share a call, and they share keys and
    flights only if the models are of one space.
    """

    def __init__(
        self,
        specs: Iterable[ModelSpec],
        send: Callable[[str], Send],
        *,
        l1_max_bytes: int,
        l1_eviction: EvictionName = "s3-fifo",
        dtype: CacheDtype,
        meter: Meter,
        l2: L2Cache | None = None,
    ) -> None:
        """The tiers of one process.

        Args:
            specs: the models whose outputs are cached.
            send: returns for an engine's id the function that computes what is in neither tier.
            l1_max_bytes: memory limit of L1.
            l1_eviction: its eviction policy.
            dtype: stored component type of the vectors.
            meter: counts hits and misses.
            l2: the tier that processes share; None: the next tier may have one.
        """
        self._specs = [*specs]
        self._memory = MemoryCache(l1_max_bytes, l1_eviction)
        self._l2 = l2
        self._meter = meter
        self._evictions = 0
        self._limited = list[GroupCoalescer]()
        lookups = dict[str, Lookup]()
        flights = defaultdict[str, dict[bytes, Flight]](dict)
        for spec in self._specs:
            coalescer = GroupCoalescer(send(spec.engine_id), math.inf)
            # Texts for providers join calls of the provider instead, and waiting for a slow call
            # would cost more time than it saves.
            if not spec.is_remote:
                self._limited.append(coalescer)
            lookups[spec.engine_id] = Lookup(
                spec.space_id,
                task_codecs(spec, dtype),
                self._memory,
                coalescer,
                flights=flights[spec.space_id],
                store=None if l2 is None else l2.store,
                meter=meter.for_model(spec.name),
            )
        self.lookups: Mapping[str, Lookup] = lookups  #: by `engine_id`

    def start(self) -> None:
        """Starts background tasks; call it once, in the event loop."""
        if self._l2 is not None:
            self._l2.start()

    def apply(self, *, l1_max_bytes: int, l1_eviction: EvictionName = "s3-fifo") -> None:
        """Applies L1's limit and policy. Cached values remain as far as they fit into L1."""
        self._memory.apply(l1_max_bytes, l1_eviction)

    def limit_calls(self, max_in_flight_calls: float) -> None:
        """Limits the calls in flight of each local model; see `GroupCoalescer`."""
        for coalescer in self._limited:
            coalescer.max_in_flight_calls = max_in_flight_calls

    @property
    def state(self) -> CacheState:
        """The state of L2."""
        return CacheState("off") if self._l2 is None else self._l2.state

    @property
    def l1_stats(self) -> MemoryStats:
        """Statistics of L1."""
        return self._memory.stats()

    async def cache_state(self) -> CacheState:
        """Returns the state of L2."""
        return self.state

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
        return CacheReport(self._memory.stats(), self.state, store, self._model_stats())

    def _model_stats(self) -> tuple[ModelCacheStats, ...]:
        value = self._meter.value
        return tuple(
            ModelCacheStats(
                name,
                int(value(CACHE_HITS, "l1", name)),
                int(value(CACHE_HITS, "l2", name)),
                int(value(CACHE_MISSES, name)),
            )
            for name in (spec.name for spec in self._specs)
        )

    async def purge(self, model: str | None = None) -> int | None:
        """Deletes the values of a model from L2 and all values from L1.

        Args:
            model: name or alias of the model; None: all models.

        Returns:
            The number of deleted values; None if no model has this name.

        Raises:
            Unavailable: not all values of L2 could be deleted; L1 is empty nevertheless.
        """
        specs = [spec for spec in self._specs if model in (None, spec.name, *spec.aliases)]
        if not specs:
            return None
        entries = self._memory.clear()
        if self._l2 is not None:
            for spec in specs:
                entries += await self._l2.purge(spec.space_id)
        return entries

    async def close(self) -> None:
        """Flushes queued writes of L2 and closes it."""
        if self._l2 is not None:
            await self._l2.close()
