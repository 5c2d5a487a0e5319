"""The in-process tier: keeps what is asked for again, inside a bound of bytes."""

from collections import OrderedDict

from serve_app.types import MemoryStats

#: What an entry costs beside the bytes of its key and value: object headers, its places in the
#: dicts, and the memory of one key that has gone. A test measures it.
ENTRY_OVERHEAD_BYTES = 544

#: Share of the bound for values that were asked for again; the rest is for new ones.
_MAIN = 0.9
#: Uses that are counted; more earn no longer stay.
_MAX_USES = 3


class MemoryCache:
    """Byte-bounded store of opaque values. For one event loop; not thread-safe.

    S3-FIFO (Yang et al., 2023, "FIFO Queues are All You Need for Cache Eviction"): new values
    go through a small queue, and only those that were asked for twice meanwhile move into the
    main one, where a value goes round once more for each use. A key that left the small queue
    is remembered for a while and goes straight to the main queue when it comes back. So a stream
    of texts that come once, such as the indexing of a corpus, doesn't push out what is in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self._small: OrderedDict[bytes, bytes] = OrderedDict()
        self._main: OrderedDict[bytes, bytes] = OrderedDict()
        self._gone: OrderedDict[bytes, None] = OrderedDict()
        self._uses: dict[bytes, int] = {}
        self._max_bytes = max_bytes
        self._bytes = self._small_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: bytes) -> bytes | None:
        """The value; None when it isn't here."""
        value = self._main.get(key)
        if value is None:
            value = self._small.get(key)
        if value is None:
            self._misses += 1
            return None
        self._hits += 1
        self._uses[key] = min(self._uses.get(key, 0) + 1, _MAX_USES)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keeps a value; one that is larger than the whole bound isn't kept."""
        if _cost(key, value) > self._max_bytes:
            self._drop(key)
            return
        if key in self._main or key in self._gone:
            self._drop(key)
            self._gone.pop(key, None)
            self._main[key] = value
        else:
            self._drop(key)
            self._small[key] = value
            self._small_bytes += _cost(key, value)
        self._bytes += _cost(key, value)
        self._shrink()

    def resize(self, max_bytes: int) -> None:
        """Changes the bound; what doesn't fit any more goes."""
        self._max_bytes = max_bytes
        self._shrink()

    def clear(self) -> int:
        """Forgets all values, and tells how many there were."""
        entries = len(self._small) + len(self._main)
        for held in (self._small, self._main, self._gone, self._uses):
            held.clear()
        self._bytes = self._small_bytes = 0
        return entries

    def stats(self) -> MemoryStats:
        """Counts since the start, and what is held now."""
        entries = len(self._small) + len(self._main)
        return MemoryStats(self._hits, self._misses, self._evictions, entries, self._bytes)

    def _drop(self, key: bytes) -> None:
        small = self._small.pop(key, None)
        if small is not None:
            self._small_bytes -= _cost(key, small)
        value = self._main.pop(key, None) if small is None else small
        if value is not None:
            self._bytes -= _cost(key, value)
            self._uses.pop(key, None)

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes:
            main_bytes = self._bytes - self._small_bytes
            if main_bytes > _MAIN * self._max_bytes or not self._small:
                self._leave_main()
            else:
                self._leave_small()
        while len(self._gone) > len(self._small) + len(self._main):
            self._gone.popitem(last=False)

    def _leave_small(self) -> None:
        key, value = self._small.popitem(last=False)
        self._small_bytes -= _cost(key, value)
        if self._uses.pop(key, 0) > 1:
            self._main[key] = value
        else:
            self._gone[key] = None
            self._evict(key, value)

    def _leave_main(self) -> None:
        key, value = self._main.popitem(last=False)
        uses = self._uses.pop(key, 0)
        if not uses:
            self._evict(key, value)
            return
        self._main[key] = value
        if uses > 1:
            self._uses[key] = uses - 1

    def _evict(self, key: bytes, value: bytes) -> None:
        self._bytes -= _cost(key, value)
        self._evictions += 1


def _cost(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES
