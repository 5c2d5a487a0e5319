"""How much a replica is asked to do and how fast it does it, in tokens."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds of computing after which what was measured counts for a third.
_MEMORY_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """One reading; the names are those of the metrics that the autoscaler sees."""

    queued_tokens: int  #: waiting or being computed now
    offered_tokens_per_s: float  #: arrived since the reading before
    capacity_tokens_per_s: float  #: speed while the engine is busy; 0: nothing was computed yet


class LoadMeter:
    """Counts tokens as they arrive and leave, and keeps a running measure of the engine's speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_read = clock()
        self._arrived = 0
        self.queued_tokens = 0
        self._running = 0
        self._since = 0.0  # the last time that a batch began alone, or ended
        self._tokens = self._seconds = 0.0

    def arrive(self, tokens: int) -> None:
        """Tokens were admitted."""
        self.queued_tokens += tokens
        self._arrived += tokens

    def leave(self, tokens: int) -> None:
        """Tokens won't wait any longer: computed, failed, or nobody wants them any more."""
        self.queued_tokens -= tokens

    @property
    def tokens_per_s(self) -> float:
        """What the engine computes while it is busy, all its streams together; 0: not known yet."""
        return self._tokens / max(self._seconds, 1e-9) if self._tokens else 0.0

    def begin(self) -> None:
        """A batch begins to run."""
        if self._running == 0:
            self._since = self._clock()
        self._running += 1

    def end(self, tokens: int) -> None:
        """A batch has ended: so many tokens computed, none if it failed."""
        now = self._clock()
        elapsed, self._since = now - self._since, now
        self._running -= 1
        kept = math.exp(-elapsed / _MEMORY_S)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + elapsed

    def read(self) -> Load:
        """The load since the reading before."""
        now = self._clock()
        elapsed, self._last_read = max(now - self._last_read, 1e-9), now
        arrived, self._arrived = self._arrived, 0
        return Load(self.queued_tokens, arrived / elapsed, self.tokens_per_s)
