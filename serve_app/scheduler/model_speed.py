"""How fast an engine computes a model in full batches, learned from the batches that it runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.config import EmbedderSettings
from serve_app.scheduler.batch_budget import THROUGHPUT_FACTOR
from serve_app.scheduler.batch_cost import BatchCostFit

#: Share of tokens in padded tokens until full batches have run.
_TYPICAL_FILL = 0.85
#: Shares are averages over about this many of the latest batches.
_MEMORY_BATCHES = 50
#: With fewer batches, a number of streams isn't known.
_MIN_BATCHES = 5
#: The cost is used for batches from the smallest size that has run up to this many times the
#: largest one: a fitted line tells little about others.
_MAX_EXTRAPOLATION = 4.0


@dataclass(frozen=True, slots=True)
class ComputedBatch:
    """A batch that an engine has computed."""

    texts: int
    tokens: int  #: without padding
    padded_tokens: int
    seconds: float
    concurrency: float = 1.0  #: mean number of batches of all models that ran during it, with it
    is_full: bool = True  #: whether it held about as much as a batch may hold


class ModelSpeed:
    """Learns the cost of a model's batches, for each number of batches that run at a time.

    Batches that run at a time slow each other, by how much depends on the engine and the machine.
    So the speed with all streams comes from batches during which all streams ran. Until there are
    some, the streams are taken not to slow each other more than the batches that did run.
    """

    def __init__(self, streams: int) -> None:
        """Creates a speed that isn't known yet.

        Args:
            streams: how many batches of the model run at a time.
        """
        self._streams = streams
        self._fits: dict[int, BatchCostFit] = {}  # by the number of running batches
        # Moving sums, of all batches, and of full ones.
        self._texts = self._text_tokens = 0.0
        self._full_batches = self._full_tokens = self._full_padded_tokens = 0.0
        self.batches = 0  #: recorded since the start of the process

    def record(self, batch: ComputedBatch) -> None:
        """Adds a batch."""
        self.batches += 1
        # Batches of other models, beyond the streams of this one, take an equal share of the time.
        seconds = batch.seconds * min(1.0, self._streams / batch.concurrency)
        level = max(1, min(round(batch.concurrency), self._streams))
        if level not in self._fits:
            self._fits[level] = BatchCostFit()
        self._fits[level].record(batch.padded_tokens, seconds)
        decay = 1 - 1 / _MEMORY_BATCHES
        self._texts = self._texts * decay + batch.texts
        self._text_tokens = self._text_tokens * decay + batch.padded_tokens
        if batch.is_full:
            self._full_batches = self._full_batches * decay + 1
            self._full_tokens = self._full_tokens * decay + batch.tokens
            self._full_padded_tokens = self._full_padded_tokens * decay + batch.padded_tokens

    def capacity_tokens_per_s(self, settings: EmbedderSettings) -> float:
        """Returns tokens per second, without padding, in batches of `batch_target_s`; 0: unknown.

        All streams run. Batches hold up to `max_batch_texts`, of the size of the latest texts.
        """
        fit = self._fullest_fit()
        cost = None if fit is None else fit.cost
        if fit is None or cost is None:
            return 0.0
        # Where other processes use the cores, waiting for them adds to the fixed part of a batch. A
        # scheduler that can't keep the target for this reason goes on with longer batches.
        factor, target_s = THROUGHPUT_FACTOR, settings.batch_target_s
        seconds = min(max(target_s, 2 * cost.fixed_s), factor * target_s)
        smallest, largest = fit.sizes
        if self._full_batches:
            smallest = max(smallest, self._full_padded_tokens / self._full_batches / factor)
        limit = min(float(settings.max_batch_tokens), _MAX_EXTRAPOLATION * largest)
        if self._texts:
            limit = min(limit, settings.max_batch_texts * self._text_tokens / self._texts)
        size = min(max(cost.tokens_within(seconds), smallest), limit)
        return self._fill * self._streams * cost.capacity(size)

    @property
    def _fill(self) -> float:
        if not self._full_padded_tokens:
            return _TYPICAL_FILL
        return self._full_tokens / self._full_padded_tokens

    def _fullest_fit(self) -> BatchCostFit | None:
        """Returns the fit of the largest number of running batches that is known."""
        known = [n for n, fit in self._fits.items() if fit.batches >= _MIN_BATCHES]
        return self._fits[max(known or self._fits)] if self._fits else None

    def state(self) -> dict[str, Any]:
        """Returns what was learned, as JSON, for `restore`."""
        return {
            "fits": {str(n): fit.state() for n, fit in sorted(self._fits.items())},
            "texts": [self._texts, self._text_tokens],
            "full": [self._full_batches, self._full_tokens, self._full_padded_tokens],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes what another process has learned; new batches replace it step by step.

        Raises:
            ValueError: it isn't the state of a speed.
        """
        try:
            fits = {int(n): BatchCostFit.restored(fit) for n, fit in state["fits"].items()}
            sums = [float(value) for name in ("texts", "full") for value in state[name]]
            texts, text_tokens, full_batches, full_tokens, full_padded_tokens = sums
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"Not the state of a speed: {error}") from error
        if not all(0 <= value < math.inf for value in sums) or full_tokens > full_padded_tokens:
            raise ValueError("Not the state of a speed: impossible sums.")
        self._fits = {n: fit for n, fit in fits.items() if 1 <= n <= self._streams}
        self._texts, self._text_tokens = texts, text_tokens
        self._full_batches = full_batches
        self._full_tokens, self._full_padded_tokens = full_tokens, full_padded_tokens
