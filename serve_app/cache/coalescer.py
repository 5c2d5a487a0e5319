"""Groups of texts that leave together: one call to the next tier where there would be many."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from serve_app.errors import EmbedServeError
from serve_app.types import TextGroup, Vectors

logger = logging.getLogger(__name__)

#: Groups in one call.
_MAX_GROUPS = 64
#: A group of more texts travels alone, whatever its lane: it would hold up what came with it.
_ALONE_TEXTS = 32

#: Answers groups in order, each with its vectors or the error that stands for them.
Send = Callable[[tuple[TextGroup, ...]], Awaitable[Sequence[Vectors | EmbedServeError]]]


class Coalescer:
    """Sends groups on; what arrives while calls are in flight waits and leaves in the next one.

    There is no timer: an idle way is taken at once, and a call that would be full never waits.
    Bulk and large groups leave at once and alone, since they would hold up what came with them.

    A call belongs to all whose groups it carries: it runs in a context of its own (Ray cancels
    calls by the context they were made in), goes on when one of them leaves, and is cancelled
    when all have left.
    """

    def __init__(self, send: Send, max_in_flight_calls: int) -> None:
        self.max_in_flight_calls = max_in_flight_calls
        self._send = send
        self._waiting: deque[tuple[TextGroup, asyncio.Future[Vectors]]] = deque()
        self._calls = set[asyncio.Task[None]]()
        self._in_flight = 0
        self._leaving = False

    async def __call__(self, group: TextGroup) -> Vectors:
        """Vectors of a group.

        Raises:
            EmbedServeError: the error that stands for them.
        """
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Vectors] = loop.create_future()
        if group.lane == "bulk" or len(group.texts) > _ALONE_TEXTS:
            self._start([(group, reply)], counted=False)
        else:
            self._waiting.append((group, reply))
            if not self._leaving:
                self._leaving = True
                loop.call_soon(self._leave)  # with all that arrives in this turn of the loop
        return await reply

    def _leave(self) -> None:
        self._leaving = False
        while self._waiting and (
            self._in_flight < self.max_in_flight_calls or len(self._waiting) >= _MAX_GROUPS
        ):
            call: list[tuple[TextGroup, asyncio.Future[Vectors]]] = []
            while self._waiting and len(call) < _MAX_GROUPS:
                group, reply = self._waiting.popleft()
                if not reply.done():
                    call.append((group, reply))
            if call:
                self._start(call, counted=True)

    def _start(
        self, call: Sequence[tuple[TextGroup, asyncio.Future[Vectors]]], *, counted: bool
    ) -> None:
        groups, replies = zip(*call, strict=True)
        self._in_flight += counted
        task = asyncio.get_running_loop().create_task(
            self._call(groups, replies), context=contextvars.Context()
        )
        self._calls.add(task)

        def arrived(task: asyncio.Task[None]) -> None:
            self._calls.discard(task)
            self._in_flight -= counted
            for reply in replies:
                reply.cancel()  # only where the call was cancelled is one still without an answer
            self._leave()

        def answered(reply: asyncio.Future[Vectors]) -> None:
            if reply.cancelled() and all(other.done() for other in replies):
                task.cancel()

        task.add_done_callback(arrived)
        for reply in replies:
            reply.add_done_callback(answered)

    async def _call(
        self, groups: tuple[TextGroup, ...], replies: Sequence[asyncio.Future[Vectors]]
    ) -> None:
        try:
            answers = await self._send(groups)
        except Exception as error:
            for reply in replies:
                if not reply.done():
                    reply.set_exception(error)
            return
        for reply, answer in zip(replies, answers, strict=True):
            if reply.done():
                continue
            if isinstance(answer, EmbedServeError):
                reply.set_exception(answer)
            else:
                reply.set_result(answer)
