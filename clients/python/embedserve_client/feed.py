"""What a blocking iterator gives, for an event loop."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """Reads an iterator on a thread of its own, a little ahead.

    The thread is a daemon: nothing can interrupt a read, and whoever ends needn't wait for one.
    """

    def __init__(self, things: Iterator[T], ahead: int = 2) -> None:
        """A feed for the running event loop, which reads at most `ahead` that nobody took yet."""
        self._things = things
        self._read: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._closed = False
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(loop,), daemon=True).start()

    async def next(self) -> T | None:
        """The next thing; None: there are no more. Raises what the iterator raised."""
        thing = await self._read.get()
        self._room.release()
        if isinstance(thing, Exception):
            raise thing
        return thing

    def close(self) -> None:
        """Nobody takes any more."""
        self._closed = True
        self._room.release()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop has ended
            try:
                for thing in self._things:
                    self._room.acquire()
                    if self._closed:
                        return
                    loop.call_soon_threadsafe(self._read.put_nowait, thing)
            except Exception as error:
                loop.call_soon_threadsafe(self._read.put_nowait, error)
            else:
                loop.call_soon_threadsafe(self._read.put_nowait, None)
