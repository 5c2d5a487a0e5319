"""Quantiles of the values between two states of a histogram."""

import math
from collections.abc import Mapping


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """Returns an estimate of a quantile, like PromQL's `histogram_quantile`.

    Values are taken to be spread evenly over their bucket. Those above the largest finite bound are
    taken to be equal to it.

    Args:
        share: of the values that are at most the result, from 0 to 1.
        buckets: for each upper bound, infinity included, how many values are at most that.

    Returns:
        The quantile in the unit of the values; None: there are no values.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    lower = below = 0.0
    for bound, count in sorted(buckets.items()):
        if count >= share * total and count > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (share * total - below) / (count - below)
        lower, below = bound, count
    return lower
