"""Blocking iterators for event loops."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Prefetcher(AsyncIterator[T]):
    """An async iterator over a blocking iterator, which a background thread reads ahead.

    The thread is a daemon, because a blocking read can't be interrupted and must not delay the
    exit of the program.
    """

    def __init__(self, items: Iterator[T], max_ahead: int = 2) -> None:
        """Starts reading; must be called on a running event loop.

        Args:
            items: the iterator; its exceptions are raised by `__anext__`.
            max_ahead: the number of items that are read before they are consumed.
        """
        self._items = items
        self._queue: asyncio.Queue[T | Exception] = asyncio.Queue()
        self._slots = threading.Semaphore(max_ahead)
        self._closed = False
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()

    async def __anext__(self) -> T:
        item = await self._queue.get()
        self._slots.release()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stops reading."""
        self._closed = True
        self._slots.release()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            try:
                for item in self._items:
                    self._slots.acquire()
                    if self._closed:
                        return
                    loop.call_soon_threadsafe(self._queue.put_nowait, item)
            except Exception as error:
                loop.call_soon_threadsafe(self._queue.put_nowait, error)
            else:
                loop.call_soon_threadsafe(self._queue.put_nowait, StopAsyncIteration())
