"""The load of a process and the speed of its engines, in tokens."""

import math
import time
from collections.abc import Callable, Sequence

from serve_app.scheduler.rates import Rates
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.scheduler.running_batches import RunningBatch, RunningBatches
from serve_app.types import Lane

#: Time constant of the moving average of the speed, in seconds of computing.
_TIME_CONSTANT_S = 1.0


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
    """Counts admitted, computed and released tokens and averages the engine's speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._queued: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._arrived: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._computed_tokens = 0
        self._running = RunningBatches(clock)
        self._speed = SpeedMeter(clock)
        self._rates = Rates(self._counts, clock)
        self._busy_rate = Rates(lambda: [self._running.busy_s], clock)

    def admit(self, lane: Lane, tokens: int, *, is_arrival: bool = True) -> None:
        """Adds tokens that enter the queue; `is_arrival`: no other replica had them before."""
        self._queued[lane] += tokens
        if is_arrival:
            self._arrived[lane] += tokens

    def release(self, lane: Lane, tokens: int) -> None:
        """Removes tokens that were computed, failed or cancelled."""
        self._queued[lane] -= tokens

    @property
    def queued_tokens(self) -> int:
        """Tokens that are queued or being computed, of both lanes."""
        return sum(self._queued.values())

    @property
    def tokens_per_s(self) -> float:
        """Recent speed of the busy engine over all its streams; 0 before the first batch."""
        return self._speed.tokens_per_s

    @property
    def busy_s(self) -> float:
        """How long at least one batch has run, since the start of the process."""
        return self._running.busy_s

    @property
    def longest_batch_s(self) -> float:
        """For how long the oldest batch has been running; 0: none runs."""
        return self._running.longest_s

    def running_batches(self, model: str) -> int:
        """Returns how many batches of a model run."""
        return self._running.count(model)

    def start_batch(self, model: str) -> RunningBatch:
        """Starts measuring a batch; idle time before it doesn't count."""
        if not self._running:
            self._speed.start()
        return self._running.start(model)

    def end_batch(self, batch: RunningBatch, tokens: int) -> None:
        """Ends measuring a batch that computed `tokens`, 0 if it failed."""
        self._running.end(batch, tokens)
        self._speed.record(tokens)
        self._computed_tokens += tokens

    def busy_share(self) -> float:
        """Returns the share of the time since the previous call in which a batch ran."""
        (share,) = self._busy_rate()
        return share

    def report(self, *, oldest_interactive_s: float, capacity_tokens_per_s: float) -> ReplicaLoad:
        """Returns the load. Rates are over the time since the previous call; see `Rates`.

        Args:
            oldest_interactive_s: age of the oldest interactive text that waits.
            capacity_tokens_per_s: speed in full batches.
        """
        offered_interactive, offered_bulk, served, busy = self._rates()
        return ReplicaLoad(
            queued_interactive_tokens=self._queued["interactive"],
            queued_bulk_tokens=self._queued["bulk"],
            oldest_interactive_s=oldest_interactive_s,
            offered_interactive_tokens_per_s=offered_interactive,
            offered_bulk_tokens_per_s=offered_bulk,
            served_tokens_per_s=served,
            busy_share=busy,
            capacity_tokens_per_s=capacity_tokens_per_s,
        )

    def _counts(self) -> Sequence[float]:
        arrived = self._arrived
        return (
            arrived["interactive"],
            arrived["bulk"],
            self._computed_tokens,
            self._running.busy_s,
        )
