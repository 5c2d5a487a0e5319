"""Counts of values by bucket, as Prometheus defines a histogram."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate


class Histogram:
    """The number of values in each bucket, and their sum. Belongs to one event loop."""

    __slots__ = ("_counts", "_upper_bounds", "sum")

    def __init__(self, upper_bounds: Sequence[float]) -> None:
        """Creates a histogram without values.

        Args:
            upper_bounds: of the buckets, inclusive, ascending. One without a bound is added.
        """
        self._upper_bounds = upper_bounds
        self._counts = [0] * (len(upper_bounds) + 1)
        self.sum = 0.0  #: of all values

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Adds a value."""
        self._counts[bisect_left(self._upper_bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Adds several values."""
        for value in values:
            self.observe(value)

    def buckets(self) -> list[tuple[str, int]]:
        """Returns for each bucket the upper bound, as the tag `le` has it, and the cumulated count.

        The last bound is `+Inf`, and its count is that of all values.
        """
        labels = (*(str(float(bound)) for bound in self._upper_bounds), "+Inf")
        return [*zip(labels, accumulate(self._counts), strict=True)]
