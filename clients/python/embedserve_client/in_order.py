"""Concurrent work whose results come in the order of its items."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END: Any = object()


async def in_order(
    items: AsyncIterator[T], work: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[tuple[T, R]]:
    """Yields each item with its result.

    Closing the generator cancels the work in progress, and waits until it has ended.

    Args:
        items: read when there is room for another one, so that memory is bounded.
        work: its first exception is raised in place of the result.
        concurrency: the number of items whose work has begun and whose result wasn't yielded yet.
    """
    in_flight: deque[tuple[T, asyncio.Task[R]]] = deque()
    exhausted = False
    try:
        while in_flight or not exhausted:
            while not exhausted and len(in_flight) < concurrency:
                item = await anext(items, _END)
                if item is _END:
                    exhausted = True
                else:
                    in_flight.append((item, asyncio.ensure_future(_run(work, item))))
            if in_flight:
                item, task = in_flight[0]
                result = await task
                in_flight.popleft()
                yield item, result
    finally:
        for _, task in in_flight:
            task.cancel()
        await asyncio.gather(*(task for _, task in in_flight), return_exceptions=True)


async def _run(work: Callable[[T], Awaitable[R]], item: T) -> R:
    return await work(item)
