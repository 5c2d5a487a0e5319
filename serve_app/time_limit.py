"""A time limit that costs nothing for work that doesn't wait."""

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def limit_time(work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Returns the result of a coroutine, like `asyncio.timeout` around it.

    The timeout begins when the coroutine waits for the first time. Most requests whose body has
    arrived and whose texts are cached never wait, and a timeout costs 4 µs.

    Raises:
        TimeoutError: the coroutine took longer, and was cancelled.
    """
    try:
        awaited = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    async with asyncio.timeout(timeout_s):
        return await _resume(work, awaited)


@coroutine
def _resume(work: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Runs a coroutine to its end that waits for `awaited`."""
    while True:
        interruption: BaseException | None = None
        try:
            yield awaited
        except BaseException as error:
            interruption = error
        try:
            awaited = work.send(None) if interruption is None else work.throw(interruption)
        except StopIteration as end:
            result: T = end.value
            return result
