"""Least frequently used."""

from collections import OrderedDict
from collections.abc import Iterator


class LFU:
    """Evicts the value with the fewest reads; of several, the least recently used one.

    Values are kept by their number of uses, so that a read moves one to the next number and an
    eviction takes one of the lowest. Reads are never forgotten: a value that was popular once
    remains.
    """

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}
        self._by_uses: dict[int, OrderedDict[bytes, bytes]] = {}
        self._lowest = 1  #: no value has fewer uses

    def get(self, key: bytes) -> bytes | None:
        """Returns a value and counts the read; None if there is none."""
        uses = self._uses.get(key)
        if uses is None:
            return None
        value = self._take(key, uses)
        self._insert(key, value, uses + 1)
        return value

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Adds a value and returns the one that it replaces, whose reads it inherits, if any."""
        uses = self._uses.get(key)
        replaced = None if uses is None else self._take(key, uses)
        self._insert(key, value, uses or 1)
        return replaced

    def pop(self, key: bytes) -> bytes | None:
        """Removes a value and returns it; None if there is none."""
        uses = self._uses.pop(key, None)
        return None if uses is None else self._take(key, uses)

    def evict(self, max_bytes: int) -> tuple[bytes, bytes]:
        """Removes the value with the fewest reads and returns it with its key."""
        if self._lowest not in self._by_uses:
            self._lowest = min(self._by_uses)
        key = next(iter(self._by_uses[self._lowest]))
        del self._uses[key]
        return key, self._take(key, self._lowest)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Returns all keys and values, those with the fewest reads first."""
        for _, values in sorted(self._by_uses.items()):
            yield from values.items()

    def __len__(self) -> int:
        return len(self._uses)

    def _insert(self, key: bytes, value: bytes, uses: int) -> None:
        self._uses[key] = uses
        self._by_uses.setdefault(uses, OrderedDict())[key] = value
        self._lowest = min(self._lowest, uses)

    def _take(self, key: bytes, uses: int) -> bytes:
        values = self._by_uses[uses]
        value = values.pop(key)
        if not values:
            del self._by_uses[uses]
        return value
