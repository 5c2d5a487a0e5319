"""Scripts on their way to a server: many in one pipeline, where there would be many round trips."""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from serve_app.valkey.client import Client, Script, reply_errors, deadline, run

_MAX_SCRIPTS = 128  # in one pipeline: about 1 ms of the server's time


class ScriptPipeline:
    """Sends scripts on; what comes while a pipeline is under way leaves in the next one.

    There is no timer: an idle line takes at once what has come in one turn of the loop.
    """

    def __init__(
        self, client: Client, timeout_s: float, ended: Callable[[Exception | None], None]
    ) -> None:
        """An empty line.

        Args:
            client: of the server.
            timeout_s: limit of each pipeline.
            ended: is told of each pipeline the error that all of it got, or None.
        """
        self._client = client
        self._timeout_s = timeout_s
        self._ended = ended
        self._waiting: deque[tuple[Script, asyncio.Future[Any]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    def send(self, script: Script) -> asyncio.Future[Any]:
        """Its reply, or the error that it got; nobody needs to wait for either."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((script, reply))
        if self._sending is None:
            # In a context of its own: Ray cancels calls by the context they were made in.
            self._sending = loop.create_task(self._send(), context=contextvars.Context())
        return reply

    async def close(self, timeout_s: float) -> None:
        """Waits until all is sent, at most so long, and ends what is under way then."""
        if self._sending is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._sending, timeout_s)

    async def _send(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), _MAX_SCRIPTS)
            batch = [self._waiting.popleft() for _ in range(size)]
            answers: list[Any]
            try:
                async with deadline(self._timeout_s):
                    answers = await run(self._client, [script for script, _ in batch])
            except Exception as error:
                answers = [error] * size
            errors = reply_errors(answers)
            self._ended(errors[0] if len(errors) == size else None)
            for (_, reply), answer in zip(batch, answers, strict=True):
                if reply.done():
                    continue
                if isinstance(answer, Exception):
                    reply.set_exception(answer)
                    reply.exception()  # so that asyncio doesn't miss somebody who hears of it
                else:
                    reply.set_result(answer)
        self._sending = None
