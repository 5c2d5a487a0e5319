"""The L1 cache: values in the memory of this process, limited in bytes."""

from serve_app.cache.eviction import POLICIES
from serve_app.cache.eviction.base import entry_bytes
from serve_app.cache.report import MemoryStats
from serve_app.config.deployments import EvictionName


class MemoryCache:
    """A byte-bounded cache of opaque values. For one event loop; not thread-safe."""

    def __init__(self, max_bytes: int, eviction: EvictionName = "s3-fifo") -> None:
        """Creates an empty cache; see `apply`."""
        self._policy = POLICIES[eviction]()
        self.eviction: EvictionName = eviction  #: the policy
        self._max_bytes = max_bytes
        self._bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> bytes | None:
        """Returns the value; None if it isn't cached."""
        value = self._policy.get(key)
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Caches a value, unless it alone exceeds the limit."""
        size = entry_bytes(key, value)
        if size > self._max_bytes:
            replaced = self._policy.pop(key)
        else:
            replaced = self._policy.put(key, value)
            self._bytes += size
        if replaced is not None:
            self._bytes -= entry_bytes(key, replaced)
        self._evict()

    def apply(self, max_bytes: int, eviction: EvictionName = "s3-fifo") -> None:
        """Changes the limit and the policy, and evicts values that exceed the limit.

        A new policy starts with the values of the previous one, but without their reads.
        """
        self._max_bytes = max_bytes
        if eviction != self.eviction:
            previous, self._policy = self._policy, POLICIES[eviction]()
            self.eviction = eviction
            for key, value in previous.items():
                self._policy.put(key, value)
        self._evict()

    def clear(self) -> int:
        """Removes all values and returns their number."""
        entries = len(self._policy)
        self._policy = POLICIES[self.eviction]()
        self._bytes = 0
        return entries

    def stats(self) -> MemoryStats:
        """Returns counts since the start, and the current size."""
        entries = len(self._policy)
        return MemoryStats(self._hits, self._misses, self._evictions, entries, self._bytes)

    def _evict(self) -> None:
        while self._bytes > self._max_bytes:
            self._bytes -= entry_bytes(*self._policy.evict(self._max_bytes))
            self._evictions += 1
