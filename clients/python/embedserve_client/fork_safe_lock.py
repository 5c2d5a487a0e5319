"""A lock that a fork can't leave locked."""

import os
import threading


class ForkSafeLock:
    """A `threading.Lock` that is replaced in a forked child.

    A fork copies a lock in its current state but not the thread that would release it.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._reset()
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
