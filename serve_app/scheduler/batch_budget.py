"""The number of padded tokens that one batch may hold."""

import math

#: Budget before the first measurement.
_INITIAL_TOKENS = 512
#: Below this, the fixed cost of a run outweighs the cost of its tokens.
_MIN_TOKENS = 64
#: A batch that fills less than this share of the budget says nothing about larger batches.
_MIN_FILL = 0.5
#: Bounds the ratio of target and measured time, so that one outlier moves the budget little.
_MAX_RATIO = 1.5


class BatchBudget:
    """Learns from full batches how many tokens the engine computes in the target time.

    A running batch can't be interrupted, so its duration bounds the wait of an interactive text.
    Larger batches are hardly more efficient once the engine is saturated.
    """

    def __init__(self) -> None:
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
            target_s: how long a batch should take.
            limit: upper bound of the budget.
        """
        if padded_tokens < _MIN_FILL * self.tokens(limit):
            return
        ratio = min(max(target_s / max(seconds, 1e-6), 1 / _MAX_RATIO), _MAX_RATIO)
        self._learned = min(max(self._learned * math.sqrt(ratio), _MIN_TOKENS), float(limit))

    def record_out_of_memory(self, padded_tokens: int) -> None:
        """Halves the size of a batch that ran out of memory and makes that the upper bound."""
        self._memory_limit = min(self._memory_limit, max(padded_tokens // 2, 1))
