"""Rates of counters."""

import time
from collections.abc import Callable, Sequence

#: Rates over a shorter time are noise.
_MIN_INTERVAL_S = 0.5


class Rates:
    """Computes how fast counters rise. Each reader needs one of its own."""

    def __init__(
        self,
        counts: Callable[[], Sequence[float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts at the current values.

        Args:
            counts: returns the counters, which never fall.
            clock: monotonic time in seconds.
        """
        self._counts = counts
        self._clock = clock
        self._since_s = clock()
        self._previous = counts()
        self._rates: Sequence[float] = [0.0] * len(self._previous)

    def __call__(self) -> Sequence[float]:
        """Returns rates per second since the previous call.

        A call less than 0.5 s after it returns the same rates again, and the next one covers the
        time of both.
        """
        now_s = self._clock()
        elapsed_s = now_s - self._since_s
        if elapsed_s >= _MIN_INTERVAL_S:
            counts = self._counts()
            self._rates = [
                (count - previous) / elapsed_s
                for count, previous in zip(counts, self._previous, strict=True)
            ]
            self._since_s, self._previous = now_s, counts
        return self._rates
