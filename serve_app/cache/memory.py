"""The L1 cache: values in the memory of this process, limited in bytes."""

from collections import OrderedDict

from serve_app.cache.report import MemoryStats

#: Memory of an entry in addition to the bytes of its key and value: object headers, dict entries,
#: and one key in the ghost queue. A test measures it.
ENTRY_OVERHEAD_BYTES = 544

#: Share of the limit for the main queue; the rest is for new values.
_MAIN_SHARE = 0.9
#: Limit of the counter of reads, as in the paper.
_MAX_FREQUENCY = 3


class MemoryCache:
    """A byte-bounded cache of opaque values. For one event loop; not thread-safe.

    It implements S3-FIFO (Yang et al., 2023, "FIFO Queues are All You Need for Cache Eviction").
    New values enter a small queue, and only those that are read twice in the meantime move to the
    main queue. There, a value is reinserted once for each read. Keys evicted from the small queue
    are remembered in a ghost queue; if such a key is written again, it enters the main queue. So a
    stream of texts that occur once, like the indexing of a corpus, doesn't evict values in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self._small: OrderedDict[bytes, bytes] = OrderedDict()
        self._main: OrderedDict[bytes, bytes] = OrderedDict()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()
        self._frequency: dict[bytes, int] = {}
        self._max_bytes = max_bytes
        self._bytes = self._small_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> bytes | None:
        """Returns the value; None if it isn't cached."""
        value = self._main.get(key)
        if value is None:
            value = self._small.get(key)
        if value is None:
            self._misses += 1
            return None
        self._hits += 1
        self._frequency[key] = min(self._frequency.get(key, 0) + 1, _MAX_FREQUENCY)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Caches a value, unless it alone exceeds the limit."""
        if _cost(key, value) > self._max_bytes:
            self._remove(key)
            return
        if key in self._main or key in self._ghost:
            self._remove(key)
            self._ghost.pop(key, None)
            self._main[key] = value
        else:
            self._remove(key)
            self._small[key] = value
            self._small_bytes += _cost(key, value)
        self._bytes += _cost(key, value)
        self._evict()

    def resize(self, max_bytes: int) -> None:
        """Changes the limit and evicts values that exceed it."""
        self._max_bytes = max_bytes
        self._evict()

    def clear(self) -> int:
        """Removes all values and returns their number."""
        entries = len(self._small) + len(self._main)
        for entry_map in (self._small, self._main, self._ghost, self._frequency):
            entry_map.clear()
        self._bytes = self._small_bytes = 0
        return entries

    def stats(self) -> MemoryStats:
        """Returns counts since the start, and the current size."""
        entries = len(self._small) + len(self._main)
        return MemoryStats(self._hits, self._misses, self._evictions, entries, self._bytes)

    def _remove(self, key: bytes) -> None:
        small = self._small.pop(key, None)
        if small is not None:
            self._small_bytes -= _cost(key, small)
        value = self._main.pop(key, None) if small is None else small
        if value is not None:
            self._bytes -= _cost(key, value)
            self._frequency.pop(key, None)

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            main_bytes = self._bytes - self._small_bytes
            if main_bytes > _MAIN_SHARE * self._max_bytes or not self._small:
                self._evict_main()
            else:
                self._evict_small()
        while len(self._ghost) > len(self._small) + len(self._main):
            self._ghost.popitem(last=False)

    def _evict_small(self) -> None:
        key, value = self._small.popitem(last=False)
        self._small_bytes -= _cost(key, value)
        if self._frequency.pop(key, 0) > 1:
            self._main[key] = value
        else:
            self._ghost[key] = None
            self._count_eviction(key, value)

    def _evict_main(self) -> None:
        key, value = self._main.popitem(last=False)
        frequency = self._frequency.pop(key, 0)
        if not frequency:
            self._count_eviction(key, value)
            return
        self._main[key] = value
        if frequency > 1:
            self._frequency[key] = frequency - 1

    def _count_eviction(self, key: bytes, value: bytes) -> None:
        self._bytes -= _cost(key, value)
        self._evictions += 1


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
