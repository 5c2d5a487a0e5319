"""The load of a replica and the speed of its engine, in tokens."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Time constant of the moving average of the speed, in seconds of computing.
_TIME_CONSTANT_S = 1.0


@dataclass(frozen=True, slots=True)
class LoadSample:
    """The load since the previous sample. Field names are the autoscaler's metric names."""

    queued_tokens: int  #: queued or being computed now
    offered_tokens_per_s: float  #: admitted since the previous sample
    capacity_tokens_per_s: float  #: speed of the busy engine; 0 before the first batch


class SpeedMeter:
    """Averages how many tokens per second are computed while there is work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._measured_until_s = 0.0  # end of the last interval that the average includes
        self._tokens = self._busy_s = 0.0  # both decay exponentially

    @property
    def tokens_per_s(self) -> float:
        """Recent average; 0 before the first measurement."""
        return self._tokens / max(self._busy_s, 1e-9) if self._tokens else 0.0

    def start(self) -> None:
        """Starts measuring after idle time, which doesn't count."""
        self._measured_until_s = self._clock()

    def record(self, tokens: int) -> None:
        """Adds tokens that were computed since `start` or the previous call; 0 is a failure."""
        now_s = self._clock()
        elapsed_s, self._measured_until_s = now_s - self._measured_until_s, now_s
        decay = math.exp(-elapsed_s / _TIME_CONSTANT_S)
        self._tokens = self._tokens * decay + tokens
        self._busy_s = self._busy_s * decay + elapsed_s


class LoadMeter:
    """Counts admitted and released tokens and averages the engine's speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sampled_s = clock()
        self._admitted_tokens = 0
        self.queued_tokens = 0
        self._running_batches = 0
        self._speed = SpeedMeter(clock)

    def admit(self, tokens: int) -> None:
        """Adds tokens that enter the queue."""
        self.queued_tokens += tokens
        self._admitted_tokens += tokens

    def release(self, tokens: int) -> None:
        """Removes tokens that were computed, failed or cancelled."""
        self.queued_tokens -= tokens

    @property
    def tokens_per_s(self) -> float:
        """Speed of the busy engine over all its streams; 0 before the first batch."""
        return self._speed.tokens_per_s

    def start_batch(self) -> None:
        """Starts measuring a batch; idle time before it doesn't count."""
        if self._running_batches == 0:
            self._speed.start()
        self._running_batches += 1

    def end_batch(self, tokens: int) -> None:
        """Ends measuring a batch that computed `tokens`, 0 if it failed."""
        self._running_batches -= 1
        self._speed.record(tokens)

    def sample(self) -> LoadSample:
        """Returns the load since the previous call."""
        now_s = self._clock()
        elapsed_s, self._sampled_s = max(now_s - self._sampled_s, 1e-9), now_s
        admitted, self._admitted_tokens = self._admitted_tokens, 0
        return LoadSample(self.queued_tokens, admitted / elapsed_s, self.tokens_per_s)
