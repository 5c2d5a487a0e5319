"""Batches Lua scripts into pipelines: one round trip for many scripts."""

import asyncio
from functools import partial
from typing import Any

from serve_app.coalescer import Coalescer, Deliver
from serve_app.valkey.client import Script, deadline, reply_errors, run_scripts
from serve_app.valkey.guarded_client import GuardedClient

_MAX_SCRIPTS = 128  # in one pipeline: about 1 ms of the server's time


class ScriptPipeline:
    """Sends scripts to a server, one pipeline at a time."""

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
        self._coalescer: Coalescer[Script, Any] = Coalescer(
            self._send, max_in_flight_calls=1, max_size=_MAX_SCRIPTS
        )
        self.flush = self._coalescer.flush  #: see `Coalescer`

    def send(self, script: Script) -> asyncio.Future[Any]:
        """Queues a script; the future gets its reply or its error. Awaiting it is optional."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._coalescer.submit(script, partial(_resolve, reply))
        return reply

    async def _send(self, scripts: tuple[Script, ...], deliver: Deliver[Any]) -> None:
        try:
            async with deadline(self._timeout_s):
                replies = await run_scripts(self._guarded.client, scripts)
        except Exception as error:
            self._guarded.record_failure(error)
            raise
        errors = reply_errors(replies)
        if len(errors) == len(scripts):
            self._guarded.record_failure(errors[0])
        elif not self._background:
            self._guarded.record_success()
        for i, reply in enumerate(replies):
            deliver(i, reply)


def _resolve(future: asyncio.Future[Any], reply: Any) -> None:
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
        # Mark as retrieved, or asyncio logs "exception was never retrieved".
        future.exception()
    else:
        future.set_result(reply)
