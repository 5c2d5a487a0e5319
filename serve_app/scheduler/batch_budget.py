"""How many padded tokens one model batch should hold."""

import math

#: Padded tokens of the first batch, before anything was measured.
_FIRST_TOKENS = 512
#: Fewer are never worth a batch: the fixed cost of a run would weigh more than they do.
_LEAST_TOKENS = 64
#: A batch that used less than this share of its budget tells nothing about larger ones.
_FULL = 0.5
#: How far one batch may move the budget, as a factor.
_STEP = 1.5


class BatchBudget:
    """Learns from full batches how many tokens the engine computes in the time a batch may take.

    A batch can't be interrupted: its time is what an interactive text may have to wait for. Larger
    ones are hardly more efficient once the engine is filled.
    """

    def __init__(self) -> None:
        self._learned = float(_FIRST_TOKENS)
        self._ceiling = math.inf

    def tokens(self, limit: int) -> int:
        """The budget of the next batch, in padded tokens, at most `limit`."""
        return int(min(self._learned, self._ceiling, limit))

    def ran(self, padded_tokens: int, seconds: float, *, target_s: float, limit: int) -> None:
        """A batch took so long, and should have taken `target_s`."""
        if padded_tokens < _FULL * self.tokens(limit):
            return
        step = min(max(target_s / max(seconds, 1e-6), 1 / _STEP), _STEP)
        self._learned = min(max(self._learned * math.sqrt(step), _LEAST_TOKENS), float(limit))

    def out_of_memory(self, padded_tokens: int) -> None:
        """A batch didn't fit: none as large is tried again."""
        self._ceiling = min(self._ceiling, max(padded_tokens // 2, 1))
