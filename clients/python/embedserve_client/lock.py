"""A lock that a fork can't leave locked for ever."""

import os
import threading


class ProcessLock:
    """A lock among the threads of one process.

    A fork copies a lock as it is, held or not, but not the thread that would let it go; a child
    therefore makes its own.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._renew()
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()
