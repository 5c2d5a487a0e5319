"""Batches Lua scripts into pipelines: one round trip for many scripts."""

import asyncio
import contextlib
import contextvars
from collections import deque
from typing import Any

from serve_app.valkey.client import Script, deadline, reply_errors, run_scripts
from serve_app.valkey.guarded_client import GuardedClient

_MAX_SCRIPTS = 128  # in one pipeline: about 1 ms of the server's time


class ScriptPipeline:
    """Sends scripts to a server, one pipeline at a time.

    Scripts that are submitted while a pipeline is in flight are sent together in the next one.
    There is no timer: when idle, the scripts of one turn of the event loop are sent at once.
    """

    def __init__(self, guarded: GuardedClient, *, background: bool = False) -> None:
        """An empty pipeline.

        Args:
            guarded: connects to the server, and records the result of each pipeline.
            background: use the time limit of calls that no request waits for. Their success isn't
                recorded, since it doesn't show that the server is fast enough for requests.
        """
        self._guarded = guarded
        self._background = background
        self._timeout_s = guarded.background_timeout_s if background else guarded.timeout_s
        self._pending: deque[tuple[Script, asyncio.Future[Any]]] = deque()
        self._send_task: asyncio.Task[None] | None = None

    def send(self, script: Script) -> asyncio.Future[Any]:
        """Queues a script; the future gets its reply or its error. Awaiting it is optional."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._pending.append((script, reply))
        if self._send_task is None:
            # In an empty context: Ray cancels calls by the context they were made in.
            self._send_task = loop.create_task(self._send(), context=contextvars.Context())
        return reply

    async def flush(self, timeout_s: float) -> None:
        """Waits until all scripts are sent; after `timeout_s`, cancels those in flight."""
        if self._send_task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._send_task, timeout_s)

    async def _send(self) -> None:
        while self._pending:
            size = min(len(self._pending), _MAX_SCRIPTS)
            batch = [self._pending.popleft() for _ in range(size)]
            results: list[Any]
            try:
                async with deadline(self._timeout_s):
                    results = await run_scripts(self._guarded.client, [s for s, _ in batch])
            except Exception as error:
                results = [error] * size
            errors = reply_errors(results)
            if len(errors) == size:
                self._guarded.record_failure(errors[0])
            elif not self._background:
                self._guarded.record_success()
            for (_, reply), result in zip(batch, results, strict=True):
                if reply.done():
                    continue
                if isinstance(result, Exception):
                    reply.set_exception(result)
                    # Mark as retrieved, or asyncio logs "exception was never retrieved".
                    reply.exception()
                else:
                    reply.set_result(result)
        self._send_task = None
