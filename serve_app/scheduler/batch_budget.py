"""The number of padded tokens that one batch may hold."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

#: Budget before the first measurement.
_INITIAL_TOKENS = 512
#: Below this, the fixed cost of a run outweighs the cost of its tokens.
_MIN_TOKENS = 64
#: A batch that fills less than this share of the budget says nothing about larger batches.
_MIN_FILL = 0.5
#: Bounds the ratio of target and measured time, so that one outlier moves the budget little.
_MAX_RATIO = 1.5


#: Duration of a batch, in multiples of the target, where no interactive text waits for its end
#: longer than for those before it: with a backlog of them, and for bulk texts alone. Still longer
#: batches cost throughput on some CPUs.
THROUGHPUT_FACTOR = 2.5
#: Interactive texts are expected for this long after the last one.
_INTERACTIVE_AFTER_S = 1.0
#: Batches for each stream that interactive texts fill, above which they are a backlog.
_BACKLOG_BATCHES = 1


class BatchBudget:
    """Learns from full batches how many tokens the engine computes in the target time.

    A running batch can't be interrupted, so its duration bounds the wait of an interactive text.
    """

    def __init__(self, factor: float = 1.0) -> None:
        """Creates a budget for batches of `factor` times the target time."""
        self._factor = factor
        self._learned = float(_INITIAL_TOKENS)
        self._memory_limit = math.inf

    def tokens(self, limit: int) -> int:
        """Returns the budget of the next batch in padded tokens, at most `limit`."""
        return int(min(self._learned, self._memory_limit, limit))

    def record_batch(
        self, padded_tokens: int, seconds: float, *, target_s: float, limit: int
    ) -> None:
        """Moves the budget toward the size that takes `target_s`.

        Args:
            padded_tokens: size of the batch that ran.
            seconds: duration of the batch.
            target_s: how long a batch should take, before the factor.
            limit: upper bound of the budget.
        """
        if padded_tokens < _MIN_FILL * self.tokens(limit):
            return
        target_s *= self._factor
        ratio = min(max(target_s / max(seconds, 1e-6), 1 / _MAX_RATIO), _MAX_RATIO)
        self._learned = min(max(self._learned * math.sqrt(ratio), _MIN_TOKENS), float(limit))

    def record_out_of_memory(self, padded_tokens: int) -> None:
        """Halves the size of a batch that ran out of memory and makes that the upper bound."""
        self._memory_limit = min(self._memory_limit, max(padded_tokens // 2, 1))


class BatchBudgets:
    """Selects the budget that fits the load. Each one learns from its own batches of a model."""

    def __init__(self, streams: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates the budgets.

        Args:
            streams: number of batches that run at a time.
            clock: monotonic time in seconds.
        """
        self._streams = streams
        self._clock = clock
        self._interactive_until_s = -math.inf
        self._latency = defaultdict[str, BatchBudget](BatchBudget)
        self._throughput = defaultdict[str, BatchBudget](partial(BatchBudget, THROUGHPUT_FACTOR))

    def record_interactive(self) -> None:
        """Notes that interactive texts have arrived."""
        self._interactive_until_s = self._clock() + _INTERACTIVE_AFTER_S

    def select(self, model: str, interactive_tokens: int, limit: int) -> BatchBudget:
        """Returns the budget of the next batch of a model.

        Args:
            model: name of the model.
            interactive_tokens: number of interactive tokens that are queued or being computed.
            limit: upper bound of the budget.
        """
        latency = self._latency[model]
        if interactive_tokens > _BACKLOG_BATCHES * self._streams * latency.tokens(limit):
            return self._throughput[model]
        if not interactive_tokens and self._clock() > self._interactive_until_s:
            return self._throughput[model]
        return latency

    def record_out_of_memory(self, model: str, padded_tokens: int) -> None:
        """See `BatchBudget.record_out_of_memory`."""
        for budgets in (self._latency, self._throughput):
            budgets[model].record_out_of_memory(padded_tokens)

    @property
    def models(self) -> Sequence[str]:
        """The models that have run."""
        return list(self._latency)
