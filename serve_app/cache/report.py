"""Statistics of the cache tiers, as `embedserve cache` prints them."""

from typing import NamedTuple

from serve_app.types import CacheState


class MemoryStats(NamedTuple):
    """Statistics of the L1 cache of one process: counters since its start, and current size."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class StoreStats(NamedTuple):
    """Statistics of the L2 server, for all of its keys and clients."""

    entries: int
    bytes: int
    max_bytes: int  #: 0: unlimited
    hits: int
    misses: int
    evictions: int


class ModelCacheStats(NamedTuple):
    """How one process found the texts of one model, since its start."""

    model: str
    l1_hits: int
    l2_hits: int
    misses: int


class CacheReport(NamedTuple):
    """Statistics of the cache tiers of one process."""

    memory: MemoryStats
    state: CacheState
    store: StoreStats | None  #: None: the process has no L2, or the server didn't respond
    models: tuple[ModelCacheStats, ...] = ()


class WarmResult(NamedTuple):
    """The number of texts that are now cached, and how many of them had to be computed."""

    texts: int
    computed: int
