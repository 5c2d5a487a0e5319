"""Least recently used."""

from collections import OrderedDict
from collections.abc import Iterator


class LRU:
    """Evicts the value that has not been read or written for the longest time."""

    def __init__(self) -> None:
        self._values = OrderedDict[bytes, bytes]()

    def get(self, key: bytes) -> bytes | None:
        """Returns a value and moves it to the end; None if there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Adds a value at the end and returns the one that it replaces, if any."""
        replaced = self._values.pop(key, None)
        self._values[key] = value
        return replaced

    def pop(self, key: bytes) -> bytes | None:
        """Removes a value and returns it; None if there is none."""
        return self._values.pop(key, None)

    def evict(self, max_bytes: int) -> tuple[bytes, bytes]:
        """Removes the value at the start and returns it with its key."""
        return self._values.popitem(last=False)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Returns all keys and values, the least recently used first."""
        return iter(self._values.items())

    def __len__(self) -> int:
        return len(self._values)
