"""A circuit breaker: after repeated failures, calls are skipped until a probe succeeds."""

import time
from collections.abc import Callable


class Breaker:
    """Opens after consecutive failures and closes when a probe succeeds.

    The breaker holds state only: its owner reports the result of each call and each probe, and
    makes no other calls while it is open. A single probe decides: it closes or opens the breaker.
    """

    def __init__(
        self,
        *,
        max_failures: int = 5,
        probe_every_s: float = 0.5,
        idle_after_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A closed breaker.

        Args:
            max_failures: consecutive failures that open it.
            probe_every_s: interval between probes after a failure.
            idle_after_s: time without any result after which a probe is due.
            clock: returns monotonic seconds.
        """
        self.is_open = False
        self._max_failures = max_failures
        self._probe_every_s = probe_every_s
        self._idle_after_s = idle_after_s
        self._clock = clock
        self._failures = 0
        self._last_result_at: float | None = None

    def record_success(self) -> None:
        """Records a successful call. Ignored while open: the call began before it opened."""
        if not self.is_open:
            self._failures = 0
            self._last_result_at = self._clock()

    def record_failure(self) -> None:
        """Records a failed call. Ignored while open, so that it doesn't delay the next probe."""
        if not self.is_open:
            self._failures += 1
            self.is_open = self._failures >= self._max_failures
            self._last_result_at = self._clock()

    def record_probe(self, succeeded: bool) -> None:
        """Records the result of a probe, which closes or opens the breaker."""
        self.is_open = not succeeded
        self._failures = 0 if succeeded else self._max_failures
        self._last_result_at = self._clock()

    def probe_due(self) -> bool:
        """Returns whether to probe: at the start, soon after a failure, and when idle."""
        if self._last_result_at is None:
            return True
        wait_s = self._probe_every_s if self._failures else self._idle_after_s
        return self._clock() - self._last_result_at >= wait_s
