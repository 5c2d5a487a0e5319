"""Whether the service can embed right now: known from real work, or tried for."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve_app.errors import EmbedServeError


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The answer to a health check."""

    healthy: bool
    age_s: float | None  #: since the engine last gave a vector; None: never
    reason: str | None  #: why it isn't healthy


class HealthProbe:
    """Healthy means: the engine gave a real vector not long ago.

    Traffic that computes something is proof enough. Without any, a check asks `probe` to
    compute one text, past every cache. Checks that come meanwhile share that try, and none of
    them ends it by leaving.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[object]],
        *,
        max_age_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._computed_at: float | None = None
        self._trying: asyncio.Task[str | None] | None = None

    def record_success(self) -> None:
        """The engine has just given a vector."""
        self._computed_at = self._clock()

    async def check(self) -> HealthReport:
        """The state now; takes at most `timeout_s`, and no time at all under traffic."""
        age_s = self._age_s()
        if age_s is not None and age_s <= self._max_age_s:
            return HealthReport(True, age_s, None)
        if self._trying is None or self._trying.done():
            # The try serves every check that waits for it: in a context of its own, the end of
            # one request can't cancel it (Ray cancels calls by the context they were made in).
            self._trying = asyncio.get_running_loop().create_task(
                self._try(), context=contextvars.Context()
            )
        reason = await asyncio.shield(self._trying)
        return HealthReport(reason is None, self._age_s(), reason)

    def _age_s(self) -> float | None:
        return None if self._computed_at is None else self._clock() - self._computed_at

    async def _try(self) -> str | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._probe()
        except TimeoutError:
            return f"No vector came within {self._timeout_s:g} s."
        except EmbedServeError as error:
            return str(error)
        self.record_success()
        return None
