"""The switch in front of a store that may be gone: nobody waits for what failed a moment ago."""

import time
from collections.abc import Callable


class Breaker:
    """Opens after some failures in a row; while it is open, only a probe asks the store.

    Probes are made in the background, so no caller pays for one. A single one decides: it closes
    the breaker or opens it. It has more time than a request, so its failure counts for more.
    """

    def __init__(
        self,
        *,
        max_failures: int,
        probe_every_s: float,
        idle_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_open = False
        self._max_failures = max_failures
        self._probe_every_s = probe_every_s
        self._idle_after_s = idle_after_s
        self._clock = clock
        self._failures = 0
        self._known_at: float | None = None

    def succeeded(self) -> None:
        """A call was answered. One that began before the breaker opened doesn't close it."""
        if not self.is_open:
            self._failures = 0
            self._known_at = self._clock()

    def failed(self) -> None:
        """A call was not answered, or not in time."""
        if not self.is_open:
            self._failures += 1
            self.is_open = self._failures >= self._max_failures
            self._known_at = self._clock()

    def probed(self, answered: bool) -> None:
        """A probe has ended."""
        self.is_open = not answered
        self._failures = 0 if answered else self._max_failures
        self._known_at = self._clock()

    def probe_due(self) -> bool:
        """Whether it is time to probe: first of all, soon after a failure, or when all is quiet."""
        if self._known_at is None:
            return True
        wait_s = self._probe_every_s if self._failures else self._idle_after_s
        return self._clock() - self._known_at >= wait_s
