"""The in-process tier: least recently used values go first, memory stays inside a byte bound."""

from collections import OrderedDict
from dataclasses import dataclass

#: What an entry costs beside the bytes of its key and value: two object headers and its place in
#: the ordered dict. A test measures it.
ENTRY_OVERHEAD_BYTES = 256


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Counts since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class MemoryCache:
    """Byte-bounded LRU of opaque values. For one event loop; not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> bytes | None:
        """The value, which is the youngest from now on; None when it isn't here."""
        value = self._values.get(key)
        if value is None:
            self._misses += 1
            return None
        self._hits += 1
        self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; one that is larger than the whole bound isn't kept."""
        old = self._values.pop(key, None)
        if old is not None:
            self._bytes -= _cost(key, old)
        if _cost(key, value) <= self._max_bytes:
            self._values[key] = value
            self._bytes += _cost(key, value)
            self._shrink()

    def resize(self, max_bytes: int) -> None:
        """Changes the bound; what is over it goes, oldest first."""
        self._max_bytes = max_bytes
        self._shrink()

    def stats(self) -> MemoryStats:
        """Counts since the start, and what is held now."""
        return MemoryStats(
            self._hits, self._misses, self._evictions, len(self._values), self._bytes
        )

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes:
            key, value = self._values.popitem(last=False)
            self._bytes -= _cost(key, value)
            self._evictions += 1


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
