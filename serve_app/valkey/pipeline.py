"""Batches Lua scripts into pipelines: one round trip for many scripts."""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

from serve_app.valkey.client import Client, Script, deadline, reply_errors, run_scripts

_MAX_SCRIPTS = 128  # in one pipeline: about 1 ms of the server's time


class ScriptPipeline:
    """Sends scripts to a server, one pipeline at a time.

    Scripts that are submitted while a pipeline is in flight are sent together in the next one.
    There is no timer: when idle, the scripts of one turn of the event loop are sent at once.
    """

    def __init__(
        self,
        client: Client,
        timeout_s: float,
        *,
        on_failure: Callable[[Exception], None],
        on_success: Callable[[], None] = lambda: None,
    ) -> None:
        """An empty pipeline.

        Args:
            client: connects to the server.
            timeout_s: time limit of each pipeline.
            on_failure: called with the first error of a pipeline in which every script failed.
            on_success: called after every other pipeline.
        """
        self._client = client
        self._timeout_s = timeout_s
        self._on_failure = on_failure
        self._on_success = on_success
        self._pending: deque[tuple[Script, asyncio.Future[Any]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    def send(self, script: Script) -> asyncio.Future[Any]:
        """Queues a script; the future gets its reply or its error. Awaiting it is optional."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._pending.append((script, reply))
        if self._sending is None:
            # In an empty context: Ray cancels calls by the context they were made in.
            self._sending = loop.create_task(self._send(), context=contextvars.Context())
        return reply

    async def flush(self, timeout_s: float) -> None:
        """Waits until all scripts are sent; after `timeout_s`, cancels those in flight."""
        if self._sending is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._sending, timeout_s)

    async def _send(self) -> None:
        while self._pending:
            size = min(len(self._pending), _MAX_SCRIPTS)
            batch = [self._pending.popleft() for _ in range(size)]
            results: list[Any]
            try:
                async with deadline(self._timeout_s):
                    results = await run_scripts(self._client, [script for script, _ in batch])
            except Exception as error:
                results = [error] * size
            errors = reply_errors(results)
            if len(errors) == size:
                self._on_failure(errors[0])
            else:
                self._on_success()
            for (_, reply), result in zip(batch, results, strict=True):
                if reply.done():
                    continue
                if isinstance(result, Exception):
                    reply.set_exception(result)
                    # Mark as retrieved, or asyncio logs "exception was never retrieved".
                    reply.exception()
                else:
                    reply.set_result(result)
        self._sending = None
