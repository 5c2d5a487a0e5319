"""Coalesces groups of texts: one call to the next tier instead of many small ones."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve_app.errors import EmbedServeError
from serve_app.types import TextGroup, Vectors

_MAX_GROUPS = 64  # in one call
#: Larger groups are sent in a call of their own, since they would delay smaller ones.
_MAX_COALESCED_TEXTS = 32
_MAX_COALESCED_CHARS = 16384

#: Returns for each group, in order, its vectors or its error.
Send = Callable[[tuple[TextGroup, ...]], Awaitable[Sequence[Vectors | EmbedServeError]]]

_Pending = tuple[TextGroup, asyncio.Future[Vectors]]


class Coalescer:
    """Sends groups; those that arrive while calls are in flight are sent together in the next call.

    There is no timer: a group is sent at once if fewer than `max_in_flight_calls` are in flight or
    if it fills a call. Bulk and large groups are sent at once and in calls of their own.

    A call serves all requests whose groups it carries. It runs in an empty context (Ray cancels
    calls by the context they were made in), continues if some of them are cancelled, and is
    cancelled if all of them are.
    """

    def __init__(self, send: Send, max_in_flight_calls: int) -> None:
        self.max_in_flight_calls = max_in_flight_calls
        self._send = send
        self._pending: deque[_Pending] = deque()
        self._calls = set[asyncio.Task[None]]()
        self._in_flight = 0
        self._dispatch_scheduled = False

    async def __call__(self, group: TextGroup) -> Vectors:
        """Returns the vectors of a group.

        Raises:
            EmbedServeError: the group's own error, or that of the whole call.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Vectors] = loop.create_future()
        if group.lane == "bulk" or _is_large(group):
            self._start([(group, reply)], limited=False)
        else:
            self._pending.append((group, reply))
            if not self._dispatch_scheduled:
                self._dispatch_scheduled = True
                loop.call_soon(self._dispatch)  # after the other groups of this turn of the loop
        return await reply

    def _dispatch(self) -> None:
        self._dispatch_scheduled = False
        while self._pending and (
            self._in_flight < self.max_in_flight_calls or len(self._pending) >= _MAX_GROUPS
        ):
            batch: list[_Pending] = []
            while self._pending and len(batch) < _MAX_GROUPS:
                group, reply = self._pending.popleft()
                if not reply.done():
                    batch.append((group, reply))
            if batch:
                self._start(batch, limited=True)

    def _start(self, batch: Sequence[_Pending], *, limited: bool) -> None:
        groups, replies = zip(*batch, strict=True)
        self._in_flight += limited
        task = asyncio.get_running_loop().create_task(
            self._call(groups, replies), context=contextvars.Context()
        )
        self._calls.add(task)

        def on_call_done(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            self._in_flight -= limited
            for reply in replies:
                reply.cancel()  # has an effect only if the call was cancelled
            self._dispatch()

        def on_reply_done(reply: asyncio.Future[Vectors]) -> None:
            if reply.cancelled() and all(other.done() for other in replies):
                task.cancel()

        task.add_done_callback(on_call_done)
        for reply in replies:
            reply.add_done_callback(on_reply_done)

    async def _call(
        self, groups: tuple[TextGroup, ...], replies: Sequence[asyncio.Future[Vectors]]
    ) -> None:
        try:
            results = await self._send(groups)
        except Exception as error:
            for reply in replies:
                if not reply.done():
                    reply.set_exception(error)
            return
        for reply, result in zip(replies, results, strict=True):
            if reply.done():
                continue
            if isinstance(result, EmbedServeError):
                reply.set_exception(result)
            else:
                reply.set_result(result)


def _is_large(group: TextGroup) -> bool:
    texts = group.texts
    return len(texts) > _MAX_COALESCED_TEXTS or sum(map(len, texts)) > _MAX_COALESCED_CHARS
