"""S3-FIFO: new values prove themselves in a small queue first."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from serve_app.cache.eviction.base import entry_bytes

#: Share of the limit for the main queue; the rest is for new values.
_MAIN_SHARE = 0.9
#: Limit of the counter of reads, as in the paper.
_MAX_FREQUENCY = 3


class S3FIFO:
    """Evicts in the order of writes, except what is read (Yang et al., 2023).

    From "FIFO Queues are All You Need for Cache Eviction". New values enter a small queue, and only
    those that are read twice in the meantime move to the main queue. There, a value is reinserted
    once for each read. Keys evicted from the small queue are remembered in a ghost queue; if such a
    key is written again, it enters the main queue. So a stream of texts that occur once, like the
    indexing of a corpus, doesn't evict values in use.
    """

    def __init__(self) -> None:
        self._small: OrderedDict[bytes, bytes] = OrderedDict()
        self._main: OrderedDict[bytes, bytes] = OrderedDict()
        self._ghost: OrderedDict[bytes, None] = OrderedDict()
        self._frequency: dict[bytes, int] = {}
        self._small_bytes = self._main_bytes = 0

    def get(self, key: bytes) -> bytes | None:
        """Returns a value and counts the read; None if there is none."""
        value = self._main.get(key)
        if value is None:
            value = self._small.get(key)
            if value is None:
                return None
        frequency = self._frequency.get(key, 0)
        if frequency < _MAX_FREQUENCY:
            self._frequency[key] = frequency + 1
        return value

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Adds a value to one of the queues and returns the one that it replaces, if any."""
        is_known = key in self._main or key in self._ghost
        replaced = self.pop(key)
        if is_known:
            self._ghost.pop(key, None)
            self._main[key] = value
            self._main_bytes += entry_bytes(key, value)
        else:
            self._small[key] = value
            self._small_bytes += entry_bytes(key, value)
        return replaced

    def pop(self, key: bytes) -> bytes | None:
        """Removes a value and returns it; None if there is none."""
        value = self._small.pop(key, None)
        if value is not None:
            self._small_bytes -= entry_bytes(key, value)
        else:
            value = self._main.pop(key, None)
            if value is None:
                return None
            self._main_bytes -= entry_bytes(key, value)
        self._frequency.pop(key, None)
        return value

    def evict(self, max_bytes: int) -> tuple[bytes, bytes]:
        """Removes the next value that has no reads left and returns it with its key."""
        evicted = None
        while evicted is None:
            if self._main_bytes > _MAIN_SHARE * max_bytes or not self._small:
                evicted = self._evict_main()
            else:
                evicted = self._evict_small()
        while len(self._ghost) > len(self):
            self._ghost.popitem(last=False)
        return evicted

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Returns all keys and values, those of the small queue first."""
        return chain(self._small.items(), self._main.items())

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def _evict_small(self) -> tuple[bytes, bytes] | None:
        """Moves the oldest new value to the main queue, or returns it."""
        key, value = self._small.popitem(last=False)
        self._small_bytes -= entry_bytes(key, value)
        if self._frequency.pop(key, 0) > 1:
            self._main[key] = value
            self._main_bytes += entry_bytes(key, value)
            return None
        self._ghost[key] = None
        return key, value

    def _evict_main(self) -> tuple[bytes, bytes] | None:
        """Reinserts the oldest value that was read, or returns it."""
        key, value = self._main.popitem(last=False)
        frequency = self._frequency.pop(key, 0)
        if not frequency:
            self._main_bytes -= entry_bytes(key, value)
            return key, value
        self._main[key] = value
        if frequency > 1:
            self._frequency[key] = frequency - 1
        return None
