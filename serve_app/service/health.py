"""The health check: recent work proves that the service can embed, otherwise a probe does."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serve_app.errors import EmbedServeError


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The result of a health check."""

    healthy: bool
    age_s: float | None  #: time since the engine last computed a vector; None: never
    reason: str | None  #: why the service isn't healthy
    is_proven: bool = True  #: False: nobody has used the model recently, and no probe ran it
    is_asleep: bool = False  #: whether its deployment has scaled to zero; the next text wakes it


def service_report(reports: Sequence[HealthReport]) -> HealthReport:
    """Returns the report of a service: of its models, the first that is proven to be healthy.

    A model that isn't probed proves nothing, unless there are no others.
    """
    proven = [report for report in reports if report.is_proven] or reports
    return next((report for report in proven if report.healthy), proven[0])


class HealthProbe:
    """Checks that the engine can compute a vector.

    A vector that was computed recently is proof. Without one, a check runs a probe: the engine
    computes one text, bypassing all caches. Concurrent checks share one probe, and the
    cancellation of a check doesn't cancel it.
    """

    def __init__(
        self,
        compute: Callable[[], Awaitable[object]] | None,
        *,
        max_age_s: float,
        timeout_s: float,
        computes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a probe.

        Args:
            compute: computes one vector, or raises. None: never probe, since that would load a
                model that nobody uses.
            max_age_s: maximum age of a computed vector as proof.
            timeout_s: time limit of the probe.
            computes: False: `compute` raises if the model fails, but computes nothing, since that
                would cost money. Its success proves nothing.
            clock: returns the current time in seconds; monotonic.
        """
        self._compute = compute
        self._max_age_s = max_age_s
        self._timeout_s = timeout_s
        self._computes = computes
        self._clock = clock
        self._computed_at: float | None = None
        self._probe: asyncio.Task[str | None] | None = None

    def record_success(self) -> None:
        """Records that the engine has just computed a vector."""
        self._computed_at = self._clock()

    @property
    def age_s(self) -> float | None:
        """Time since the engine last computed a vector; None: never."""
        return None if self._computed_at is None else self._clock() - self._computed_at

    def recent(self) -> HealthReport | None:
        """Returns the report if recent work proves it; None: only a probe can."""
        age_s = self.age_s
        is_recent = self._computes and age_s is not None and age_s <= self._max_age_s
        return HealthReport(True, age_s, None) if is_recent else None

    async def check(self) -> HealthReport:
        """Returns the current state, after at most `timeout_s`; at once if there is recent work."""
        age_s = self.age_s
        is_recent = age_s is not None and age_s <= self._max_age_s
        if self._compute is None or (is_recent and self._computes):
            return HealthReport(True, age_s, None, is_recent)
        if self._probe is None or self._probe.done():
            # The probe serves all concurrent checks. It runs in a context of its own because Ray
            # cancels calls by the context they were made in, when one of the requests ends.
            self._probe = asyncio.get_running_loop().create_task(
                self._run_probe(self._compute), context=contextvars.Context()
            )
        reason = await asyncio.shield(self._probe)
        is_proven = self._computes or is_recent or reason is not None
        return HealthReport(reason is None, self.age_s, reason, is_proven)

    async def _run_probe(self, compute: Callable[[], Awaitable[object]]) -> str | None:
        """Returns why the probe failed; None: it succeeded."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await compute()
        except TimeoutError:
            return f"The engine returned no vector within {self._timeout_s:g} s."
        except EmbedServeError as error:
            return str(error)
        if self._computes:
            self.record_success()
        return None
