"""How long a batch takes: a fixed time, and a time for each padded token."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Self

#: Batches whose sizes have the same power of two share a mean.
_BINS = 40
#: A mean covers about this many of the latest batches of its size.
_MEMORY_BATCHES = 50
#: Larger deviations from the mean of a size count as this many typical deviations.
_MAX_DEVIATIONS = 3.0
#: Before this many batches of a size, its typical deviation isn't known.
_MIN_BATCHES = 5
#: Deviations within this share of the mean are never outliers.
_MIN_DEVIATION = 0.02
#: What another process has learned counts as this many batches of a size.
_MAX_RESTORED_BATCHES = 10
#: Sizes must differ by this factor before a slope is computed from them.
_MIN_SPREAD = 1.3
#: Until then, this share of the duration is taken to be fixed.
_FIXED_SHARE = 0.5
#: Takes the place of a slope of 0.
_MIN_TOKEN_S = 1e-12


@dataclass(frozen=True, slots=True)
class BatchCost:
    """A linear model of the duration of a batch."""

    fixed_s: float  #: duration of an empty batch
    token_s: float  #: seconds for each padded token

    def seconds(self, padded_tokens: float) -> float:
        """Returns the duration of a batch."""
        return self.fixed_s + self.token_s * padded_tokens

    def capacity(self, max_batch_tokens: float) -> float:
        """Returns padded tokens per second in batches of this size."""
        seconds = self.seconds(max_batch_tokens)
        return max_batch_tokens / seconds if seconds > 0 else 0.0

    def tokens_within(self, seconds: float) -> float:
        """Returns the size of the batch that takes `seconds`, in padded tokens; at least 0."""
        return max(seconds - self.fixed_s, 0.0) / max(self.token_s, _MIN_TOKEN_S)


@dataclass(slots=True)
class _SizeBin:
    """Moving means of batches of similar size. Sizes and seconds are scaled alike by outliers."""

    batches: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    deviation: float = 0.0  # mean absolute deviation of the seconds, relative to the expectation

    def record(self, tokens: float, seconds: float) -> None:
        """Adds a batch. An outlier is moved to the edge of the typical range."""
        if self.batches:
            # Within a bin, the duration is taken to grow with the size.
            expected = self.seconds * tokens / self.tokens
            relative = seconds / expected - 1
            if self.batches >= _MIN_BATCHES:
                limit = _MAX_DEVIATIONS * max(self.deviation, _MIN_DEVIATION)
                if abs(relative) > max(limit, tokens / self.tokens - 1, self.tokens / tokens - 1):
                    # A change of speed moves the mean, and widens the range, step by step.
                    relative = math.copysign(limit, relative)
                    seconds = expected * max(1 + relative, 0.0)
            self.deviation += (abs(relative) - self.deviation) / min(self.batches, _MEMORY_BATCHES)
        self.batches = min(self.batches + 1, _MEMORY_BATCHES)
        self.tokens += (tokens - self.tokens) / self.batches
        self.seconds += (seconds - self.seconds) / self.batches


class BatchCostFit:
    """Learns a `BatchCost` from batches, and forgets old ones.

    Batches of each size have a mean of their own, so light load, where all batches are small,
    doesn't displace what is known of large ones. The line through the means minimizes relative
    errors. Without noise it is exact.
    """

    def __init__(self, prior: BatchCost | None = None) -> None:
        """Creates a fit.

        Args:
            prior: the result until batches of different sizes have run.
        """
        self._prior = prior
        self._bins: list[_SizeBin | None] = [None] * _BINS

    def record(self, padded_tokens: int, seconds: float) -> None:
        """Adds a batch; ignored unless both are positive and finite."""
        if not (padded_tokens > 0 and 0 < seconds < math.inf):
            return
        i = _bin(padded_tokens)
        size_bin = self._bins[i]
        if size_bin is None:
            size_bin = self._bins[i] = _SizeBin()
        size_bin.record(float(padded_tokens), seconds)

    @property
    def cost(self) -> BatchCost | None:
        """The fitted model; the prior if sizes don't differ enough; None without any batch.

        Without a prior, half of the duration of batches of one size is taken to be fixed, which
        mostly underestimates the capacity at much larger batches.
        """
        means = [m for m in self._bins if m is not None]
        if not means:
            return self._prior
        if means[-1].tokens < _MIN_SPREAD * means[0].tokens:
            seconds, tokens = means[0].seconds, means[0].tokens
            fixed_s = _FIXED_SHARE * seconds
            return self._prior or BatchCost(fixed_s, (seconds - fixed_s) / tokens)
        weights = [m.batches / m.seconds**2 for m in means]
        total = sum(weights)
        mean_x = sum(w * m.tokens for w, m in zip(weights, means, strict=True)) / total
        mean_y = sum(w * m.seconds for w, m in zip(weights, means, strict=True)) / total
        covariance = variance = 0.0
        for weight, m in zip(weights, means, strict=True):
            covariance += weight * (m.tokens - mean_x) * (m.seconds - mean_y)
            variance += weight * (m.tokens - mean_x) ** 2
        slope = covariance / variance
        fixed_s = mean_y - slope * mean_x
        if slope <= 0:  # size makes no measurable difference
            return BatchCost(mean_y, _MIN_TOKEN_S)
        if fixed_s < 0:
            return BatchCost(0.0, mean_y / mean_x)
        return BatchCost(fixed_s, slope)

    @property
    def batches(self) -> float:
        """Number of batches that the cost is based on."""
        return sum(m.batches for m in self._bins if m is not None)

    @property
    def sizes(self) -> tuple[float, float]:
        """Padded tokens of the smallest and of the largest batches; 0: none has run."""
        sizes = [m.tokens for m in self._bins if m is not None]
        return min(sizes, default=0.0), max(sizes, default=0.0)

    def state(self) -> list[list[float]]:
        """Returns what was learned, as JSON, for `restored`."""
        return [list(astuple(m)) for m in self._bins if m is not None]

    @classmethod
    def restored(cls, state: Sequence[Sequence[float]]) -> Self:
        """Returns a fit that knows what another one has learned.

        Raises:
            ValueError: it isn't the state of a fit.
            TypeError: likewise.
        """
        fit = cls()
        for values in state:
            batches, tokens, seconds, deviation = map(float, values)
            mean = _SizeBin(batches, tokens, seconds, deviation)
            is_finite = all(map(math.isfinite, astuple(mean)))
            if not is_finite or min(mean.batches, mean.seconds) <= 0 or mean.tokens < 1:
                raise ValueError(f"Not the mean of batches: {values}")
            mean.batches = min(mean.batches, _MAX_RESTORED_BATCHES)
            fit._bins[_bin(int(mean.tokens))] = mean
        return fit


def _bin(tokens: int) -> int:
    return min(tokens.bit_length(), _BINS - 1)
