"""The batches that engines compute at the moment."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class RunningBatch:
    """A batch from its start to its end."""

    model: str
    start_s: float
    sum_at_start: float
    seconds: float = 0.0  #: duration; 0 until it has ended
    tokens: int = 0  #: computed, without padding; 0 until it has ended, or if it failed
    concurrency: float = 1.0  #: mean number of batches that ran during it, itself included


class RunningBatches:
    """Counts running batches, and the time in which any runs. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an empty collection; `clock` returns monotonic time in seconds."""
        self._clock = clock
        self._batches = set[RunningBatch]()
        self._by_model = Counter[str]()
        self._updated_s = clock()
        self._busy_s = 0.0
        self._sum_s = 0.0  # of the durations of all batches

    def start(self, model: str) -> RunningBatch:
        """Adds a batch."""
        self._update()
        batch = RunningBatch(model, self._updated_s, self._sum_s)
        self._batches.add(batch)
        self._by_model[model] += 1
        return batch

    def end(self, batch: RunningBatch, tokens: int) -> None:
        """Removes a batch that computed `tokens`, and sets its duration and concurrency."""
        self._update()
        self._batches.remove(batch)
        self._by_model[batch.model] -= 1
        batch.tokens = tokens
        batch.seconds = self._updated_s - batch.start_s
        if batch.seconds > 0:
            batch.concurrency = (self._sum_s - batch.sum_at_start) / batch.seconds

    def __len__(self) -> int:
        return len(self._batches)

    def count(self, model: str) -> int:
        """Returns how many batches of a model run."""
        return self._by_model[model]

    @property
    def longest_s(self) -> float:
        """For how long the oldest batch has been running; 0: none runs."""
        now_s = self._clock()
        return max((now_s - batch.start_s for batch in self._batches), default=0.0)

    @property
    def busy_s(self) -> float:
        """How long at least one batch has been running, since the start of the process."""
        self._update()
        return self._busy_s

    def _update(self) -> None:
        now_s = self._clock()
        if self._batches:
            elapsed_s = now_s - self._updated_s
            self._busy_s += elapsed_s
            self._sum_s += elapsed_s * len(self._batches)
        self._updated_s = now_s
