"""How much a replica is asked to do and how fast it does it, in tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass

#: Weight of the newest batch in the running measure of speed: about the last ten batches count.
_NEWEST = 0.1


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
        self.tokens_per_s = 0.0

    def arrive(self, tokens: int) -> None:
        """Tokens were admitted."""
        self.queued_tokens += tokens
        self._arrived += tokens

    def leave(self, tokens: int) -> None:
        """Tokens won't wait any longer: computed, failed, or nobody wants them any more."""
        self.queued_tokens -= tokens

    def computed(self, tokens: int, seconds: float) -> None:
        """A batch was computed."""
        speed = tokens / max(seconds, 1e-9)
        self.tokens_per_s += (speed - self.tokens_per_s) * (_NEWEST if self.tokens_per_s else 1.0)

    def read(self) -> Load:
        """The load since the reading before."""
        now = self._clock()
        elapsed, self._last_read = max(now - self._last_read, 1e-9), now
        arrived, self._arrived = self._arrived, 0
        return Load(self.queued_tokens, arrived / elapsed, self.tokens_per_s)
