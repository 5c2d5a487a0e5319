"""The slope of a series of samples, with a standard error that holds for autocorrelated samples.

Neighboring samples of a process are alike, so that they say less than as many independent ones, and
the usual standard error of a regression is too small.

- Few segments: the effective number of samples, from the autocorrelation of the residuals at lag 1.
  Santer et al., "Statistical significance of trends and trend differences in layer-average
  atmospheric temperature time series", Journal of Geophysical Research 105, 2000, equations 3 to 6.
- Four segments or more, which are independent of each other: the variance between them, whatever
  correlates within one. Liang and Zeger, "Longitudinal data analysis using generalized linear
  models", Biometrika 73, 1986.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_MIN_SAMPLES = 6
_MIN_CLUSTERS = 4
#: More would leave no effective samples.
_MAX_AUTOCORRELATION = 0.99


class Segment(NamedTuple):
    """Samples with a level of their own, such as those of one process; arrays of shape (n,)."""

    times: Float64  #: ascending, in hours
    values: Float64


class Trend(NamedTuple):
    """The slope that all segments share."""

    slope: float  #: per hour
    error: float  #: standard error of the slope
    samples: int
    effective_samples: float

    @property
    def is_positive(self) -> bool:
        """Whether the slope exceeds zero by more than two standard errors."""
        return self.slope > 2 * self.error

    @property
    def upper_bound(self) -> float:
        """The slope plus two standard errors."""
        return self.slope + 2 * self.error


def fit_trend(segments: Sequence[Segment]) -> Trend | None:
    """Fits lines of one slope and of a level for each segment by least squares.

    Returns:
        The trend; None if there are fewer than six samples, or all of one moment.
    """
    segments = [segment for segment in segments if len(segment.times) > 1]
    samples = sum(len(segment.times) for segment in segments)
    if samples < _MIN_SAMPLES:
        return None
    times = [segment.times - segment.times.mean() for segment in segments]
    values = [segment.values - segment.values.mean() for segment in segments]
    spread = sum(float(t @ t) for t in times)
    if spread == 0:
        return None
    slope = sum(float(t @ v) for t, v in zip(times, values, strict=True)) / spread
    residuals = [v - slope * t for t, v in zip(times, values, strict=True)]
    squares = sum(float(r @ r) for r in residuals)
    correlation = _autocorrelation(residuals, squares)
    effective = samples * (1 - correlation) / (1 + correlation)
    if len(segments) >= _MIN_CLUSTERS:
        scores = np.array([float(t @ r) for t, r in zip(times, residuals, strict=True)])
        count = len(segments)
        variance = float(scores @ scores) / spread**2 * count / (count - 1)
    else:
        degrees = max(effective - len(segments) - 1, 1.0)
        variance = squares / degrees / spread
    return Trend(slope, float(np.sqrt(variance)), samples, effective)


def _autocorrelation(residuals: Sequence[Float64], squares: float) -> float:
    """Returns the autocorrelation at lag 1 within segments, from 0 to 0.99."""
    if squares == 0:
        return 0.0
    products = sum(float(r[:-1] @ r[1:]) for r in residuals)
    return min(max(products / squares, 0.0), _MAX_AUTOCORRELATION)
