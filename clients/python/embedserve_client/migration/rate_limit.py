"""Spreads work over time."""

import time
from collections.abc import Callable


class RateLimit:
    """Texts per second. Work that is late isn't made up for: the service gets no burst."""

    def __init__(
        self, texts_per_s: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Creates a limit.

        Args:
            texts_per_s: None: no limit.
            clock: the time in seconds.
        """
        self._texts_per_s = texts_per_s
        self._clock = clock
        self._next_at = clock()

    def delay_s(self, texts: int) -> float:
        """Returns the seconds to wait before these texts are sent, after all earlier ones."""
        if self._texts_per_s is None:
            return 0.0
        now = self._clock()
        start = max(now, self._next_at)
        self._next_at = start + texts / self._texts_per_s
        return start - now
