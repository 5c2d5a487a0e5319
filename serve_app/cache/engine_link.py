"""An engine in a chain: whether it answers, and calls that don't wait for one that doesn't."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve_app.errors import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: Returns once a replica with the engine responds; raises if it isn't well.
Ping = Callable[[], Awaitable[object]]

#: One text that no engine can compute isn't the engine's fault.
_MAX_FAILURES = 5
_PING_RETRY_S = 1.0
#: While an engine fails, one call in this time tries it.
_RETRY_S = 1.0


class EngineLink:
    """One engine of a chain. Belongs to one event loop.

    A call to a deployment without a replica waits for one. While the engine doesn't respond, calls
    fail at once, and a single ping waits. While all calls fail, most aren't made.
    """

    def __init__(
        self,
        name: str,
        ping: Ping | None = None,
        *,
        after_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An engine that is expected to answer.

        Args:
            name: the engine's model.
            ping: None: the engine is in this process.
            after_s: how long a call waits before the engine is pinged, and then for the ping.
            clock: returns monotonic seconds.
        """
        self.name = name
        self.failure: str | None = None  #: why calls fail; None: they don't, or only some do
        self._ping = ping
        self._clock = clock
        self._retry_at_s = 0.0
        self._after_s = after_s
        self._pinging: asyncio.Task[None] | None = None
        self._is_absent = False
        self._failures = 0

    async def run(self, call: Callable[[], Awaitable[T]], *, is_last: bool = False) -> T:
        """Returns the result of a call of the engine.

        Args:
            call: makes the call.
            is_last: whether no other engine or model follows. The call is then always made, and
                waits for an answer as long as it takes.

        Raises:
            Unavailable: no replica responds, or other calls have just failed.
            Exception: as raised by the call.
        """
        if is_last:
            return await call()
        if self._is_absent:
            raise self._unavailable()
        if self.failure is not None:
            now_s = self._clock()
            if now_s < self._retry_at_s:
                raise Unavailable(self.failure)
            self._retry_at_s = now_s + _RETRY_S
        if self._ping is None:
            return await call()
        task = asyncio.ensure_future(call())
        try:
            while not (await asyncio.wait((task,), timeout=self._after_s))[0]:
                if not await self._responds(self._ping) and not task.done():
                    raise self._unavailable()
            return task.result()
        finally:
            task.cancel()

    def record(self, failure: Exception | None) -> None:
        """Records the outcome of a call; a change of the engine's state is logged."""
        if failure is None:
            self._recover()
            return
        self._failures += 1
        if self._failures >= _MAX_FAILURES or self._is_absent:
            self._fail(str(failure))

    async def _responds(self, ping: Ping) -> bool:
        if self._pinging is None or self._pinging.done():
            # Ray cancels calls by the context they were made in; the ping serves all calls.
            self._pinging = asyncio.get_running_loop().create_task(
                self._ping_until_answer(ping), context=contextvars.Context()
            )
        pinging = self._pinging
        await asyncio.wait((pinging,), timeout=self._after_s)
        self._is_absent = not pinging.done()
        return not self._is_absent

    async def _ping_until_answer(self, ping: Ping) -> None:
        while True:
            try:
                await ping()
                break
            except Exception as error:
                logger.debug("%s doesn't respond: %r", self.name, error)
                await asyncio.sleep(_PING_RETRY_S)
        if self._is_absent:
            self._is_absent = False
            self._recover()

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            logger.warning("%s fails, and its fallback answers: %s", self.name, reason)
            self._retry_at_s = self._clock() + _RETRY_S
        self.failure = reason

    def _recover(self) -> None:
        self._failures = 0
        if self.failure is not None:
            logger.info("%s answers again.", self.name)
            self.failure = None

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"No replica with {self.name} responds; try again.")
