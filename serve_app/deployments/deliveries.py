"""The results of the groups of a call, together or one after the other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from serve_app.cache.coalescer import Deliver, Send
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.types import EncodedVectors, TextGroup

#: The outputs of a group, or its error as a value.
GroupResult = EncodedVectors | EmbedServeError
#: A part of a stream: positions of groups and their results; an error of all groups that have no
#: result yet; None: the replica doesn't have the engine.
Part = list[tuple[int, GroupResult]] | EmbedServeError | None


async def collect(send: Send, groups: tuple[TextGroup, ...]) -> list[GroupResult]:
    """Returns the result of each group, in their order."""
    results: list[Any] = [Unavailable("The replica returned no outputs; try again.")] * len(groups)
    await send(groups, results.__setitem__)
    return results


async def deliveries(send: Send, groups: tuple[TextGroup, ...]) -> AsyncIterator[Part]:
    """Yields results as they become known, those that have come meanwhile together.

    The last part is an error if `send` raises one of the service.
    """
    ready: list[tuple[int, Any]] = []
    has_news = asyncio.Event()

    def deliver(index: int, result: Any) -> None:
        ready.append((index, result))
        has_news.set()

    async def run(deliver: Deliver) -> None:
        try:
            await send(groups, deliver)
        finally:
            has_news.set()

    task = asyncio.create_task(run(deliver))
    try:
        while not task.done() or ready:
            await has_news.wait()
            has_news.clear()
            if ready:
                part, ready = ready, []
                yield part
        await task
    except EmbedServeError as error:
        yield error
    finally:
        task.cancel()
