"""The rate of arrivals: steady while it only fluctuates, fast when it changes, and its slope."""

import math
from dataclasses import dataclass, replace
from typing import Self

#: Time constants of the moving averages.
_FAST_S, _SLOW_S = 15.0, 60.0
#: A level that differs by this many standard deviations for `_STEP_REPORTS` is a new one.
_STEP_DEVIATIONS = 3.0
_STEP_REPORTS = 2
#: Deviations within this share of the rate are fluctuations.
_MIN_DEVIATION = 0.08
#: Over this time the difference of the averages gives the slope.
_SLOPE_S = _SLOW_S - _FAST_S


@dataclass(frozen=True, slots=True)
class ArrivalRate:
    """Averages of a rate in tokens per second. Immutable; `updated` returns the next one."""

    fast: float = 0.0
    slow: float = 0.0
    variance: float = 0.0
    above: int = 0  #: consecutive samples above the fluctuations, or below if negative
    pending: float = 0.0  #: mean of these samples
    updated_s: float = -math.inf

    def updated(self, sample: float, now_s: float) -> Self:
        """Returns the averages with one more sample."""
        if self.updated_s == -math.inf:
            return replace(self, fast=sample, slow=sample, updated_s=now_s)
        elapsed_s = max(now_s - self.updated_s, 0.0)
        deviation = max(math.sqrt(self.variance), _MIN_DEVIATION * self.fast)
        difference = sample - self.fast
        above, pending = 0, 0.0
        if abs(difference) > _STEP_DEVIATIONS * deviation:
            sign = 1 if difference > 0 else -1
            same = self.above * sign > 0
            above = self.above + sign if same else sign
            pending = self.pending + (sample - self.pending) / abs(above) if same else sample
            if abs(above) >= _STEP_REPORTS:
                variance = self.variance * (pending / self.fast if self.fast > 0 else 1.0)
                # A level that was wrong leaves no fluctuations behind.
                variance = min(variance, pending**2)
                return replace(
                    self,
                    fast=pending,
                    slow=pending,
                    variance=variance,
                    above=0,
                    pending=0.0,
                    updated_s=now_s,
                )
            # The first one may be an outlier: it moves the averages like the largest fluctuation.
            difference = sign * _STEP_DEVIATIONS * deviation
        fast = self.fast + difference * -math.expm1(-elapsed_s / _FAST_S)
        slow = self.slow + (self.fast + difference - self.slow) * -math.expm1(-elapsed_s / _SLOW_S)
        variance = self.variance + (difference**2 - self.variance) * -math.expm1(
            -elapsed_s / _SLOW_S
        )
        return replace(
            self,
            fast=fast,
            slow=slow,
            variance=variance,
            above=above,
            pending=pending,
            updated_s=now_s,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of `fast`, for samples of one second."""
        return math.sqrt(self.variance / (2 * _FAST_S))

    def ahead(self, lead_s: float) -> float:
        """Returns the rate in `lead_s`, where a falling rate is taken to stay."""
        rise = self.fast - self.slow
        if rise <= _MIN_DEVIATION / 2 * self.fast:
            return self.fast
        return self.fast + rise / _SLOPE_S * lead_s
