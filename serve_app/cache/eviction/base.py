"""What an eviction policy does: holds the values and selects which of them leaves next."""

from collections.abc import Iterator
from typing import Protocol

#: Memory of an entry in addition to the bytes of its key and value: object headers, dict entries,
#: and with S3-FIFO one key in the ghost queue. A test measures it.
ENTRY_OVERHEAD_BYTES = 544


def entry_bytes(key: bytes, value: bytes) -> int:
    """Returns the memory that an entry takes."""
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES


class EvictionPolicy(Protocol):
    """The values of a cache, and the order in which they leave it. It counts no bytes in total."""

    def get(self, key: bytes) -> bytes | None:
        """Returns a value and records that it was read; None if there is none."""
        ...

    def put(self, key: bytes, value: bytes) -> bytes | None:
        """Adds a value and returns the one that it replaces, if any."""
        ...

    def pop(self, key: bytes) -> bytes | None:
        """Removes a value and returns it; None if there is none."""
        ...

    def evict(self, max_bytes: int) -> tuple[bytes, bytes]:
        """Removes one value, of at least one, and returns its key and the value.

        Args:
            max_bytes: limit of the cache, overhead of its entries included.
        """
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Returns all keys and values; roughly, those that would leave first come first."""
        ...

    def __len__(self) -> int:
        """Returns the number of values."""
        ...
