"""Calls to a deployment without a replica: how long they wait until one has started."""

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve_app.errors import Unavailable
from serve_app.types import ReplicaCount

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Until a start has been measured.
_DEFAULT_STARTUP_S = 10.0


class WakeUp:
    """Bounds how long calls wait for a deployment that has no replica.

    Ray keeps such calls until a replica has started, and starts one for them where the deployment
    has scaled to zero. All calls of a process share the wait: it ends for all of them at once, and
    later calls fail soon while no replica starts. Belongs to one event loop.
    """

    def __init__(
        self,
        deployment: str,
        count: Callable[[], Awaitable[ReplicaCount | None]],
        *,
        timeout_s: float,
        check_interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates the limit of one deployment.

        Args:
            deployment: its name, for messages.
            count: returns its replicas; None: unknown, and calls wait.
            timeout_s: how long calls wait without a replica.
            check_interval_s: how long a call waits before the replicas are counted.
            clock: returns monotonic seconds.
        """
        self._deployment = deployment
        self._count = count
        self._timeout_s = timeout_s
        self._check_interval_s = check_interval_s
        self._clock = clock
        self._calls: dict[asyncio.Timeout, float] = {}  # with the times of their starts
        self._absent_since_s: float | None = None
        self._startup_s = _DEFAULT_STARTUP_S
        self._watch: asyncio.Task[None] | None = None

    @property
    def retry_after_s(self) -> int:
        """How long the latest start of a replica took, in whole seconds; at least 1."""
        return max(1, math.ceil(self._startup_s))

    async def wait(self, call: Awaitable[T]) -> T:
        """Returns the result of a call.

        Raises:
            Unavailable: no replica has started within `timeout_s`.
            Exception: as raised by the call.
        """
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._calls[scope] = self._clock()
                if self._watch is None:
                    # Ray cancels calls by the context they were made in; the watch serves all.
                    self._watch = asyncio.get_running_loop().create_task(
                        self._watch_calls(), context=contextvars.Context()
                    )
                return await call
        except TimeoutError:
            if not scope.expired():
                raise
            raise Unavailable(
                f"No replica of {self._deployment} has started within {self._timeout_s:g} s; try "
                "again later.",
                self.retry_after_s,
            ) from None
        finally:
            self._calls.pop(scope, None)

    async def _watch_calls(self) -> None:
        try:
            while self._calls:
                await asyncio.sleep(self._check_interval_s)
                before_s = self._clock() - self._check_interval_s
                waiting = {s: start_s for s, start_s in self._calls.items() if start_s <= before_s}
                if waiting:
                    await self._check(waiting)
        finally:
            self._watch, self._absent_since_s = None, None

    async def _check(self, waiting: dict[asyncio.Timeout, float]) -> None:
        count, now_s = await self._count(), self._clock()
        if count is None or count.running:
            if self._absent_since_s is not None and count is not None:
                self._startup_s = now_s - self._absent_since_s
                logger.info("%s has woken up in %.1f s.", self._deployment, self._startup_s)
                self._absent_since_s = None
        elif self._absent_since_s is None:
            self._absent_since_s = min(waiting.values())
        if self._absent_since_s is None or now_s - self._absent_since_s < self._timeout_s:
            return
        if count is not None:
            for scope in waiting.keys() & self._calls.keys():
                scope.reschedule(asyncio.get_running_loop().time())
