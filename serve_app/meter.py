"""Counts the service's metrics: counts in a `Meter` → `export` → Ray's metrics → Prometheus.

A call into Ray's metrics takes some microseconds, too slow for each step of each request. The code
counts in a `Meter` instead, and each deployment exports its meter every second.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from serve_app.metrics import (
    CACHED_TEXTS,
    COST_NANO_USD,
    GAUGES,
    PROCESS_CPU_SECONDS,
    PROCESS_MEMORY_BYTES,
    REQUESTS,
    SAVED_NANO_USD,
    STAGE_SECONDS,
    TEXTS,
    TOKENS,
    Metric,
)
from serve_app.totals import Totals

_EXPORT_INTERVAL_S = 1.0

#: The current value of each gauge; of a gauge with tags, the value for the values of its tags.
Gauges = Mapping[Metric, float | Mapping[Any, float]]
#: The value of each counter, by metric and the values of its tags.
Counts = Mapping[tuple[Metric, tuple[str, ...]], float]


class Meter:
    """Counters of one process, since the last drain and in total. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._models: dict[str, ModelMeter] = {}
        self._drained = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._baseline = Totals()

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Adds to a counter.

        Args:
            metric: the metric to count.
            amount: at least 0.
            tags: values in the order of `metric.tags`.
        """
        self._pending[metric, tags] += amount

    def for_model(self, model: str) -> "ModelMeter":
        """Returns the meter that counts for one model."""
        if model not in self._models:
            self._models[model] = ModelMeter(self, model)
        return self._models[model]

    def drain(self) -> Counts:
        """Returns the counts since the previous call."""
        counts = self._undrained()
        self._pending.clear()
        for meter in self._models.values():
            meter.clear()
        for key, amount in counts.items():
            self._drained[key] += amount
        return counts

    def counts(self) -> Counts:
        """Returns the counts since the start."""
        self.drain()
        return self._drained

    def value(self, metric: Metric, *tags: str) -> float:
        """Returns a counter's value since the start. Doesn't affect `drain`."""
        return self._drained.get((metric, tags), 0.0) + self._undrained().get((metric, tags), 0.0)

    def totals(self) -> Totals:
        """Returns the totals since the last `reset`."""
        return self._lifetime_totals().minus(self._baseline)

    def reset(self) -> None:
        """Resets `totals` to zero. Doesn't affect `drain`, so exported counters keep rising."""
        self._baseline = self._lifetime_totals()

    def _undrained(self) -> Counts:
        """Returns the counts since the last `drain`, of all models."""
        counts = self._pending.copy()
        for meter in self._models.values():
            for key, amount in meter.counts().items():
                counts[key] += amount
        return counts

    def _lifetime_totals(self) -> Totals:
        sums = defaultdict[Metric, float](float)
        succeeded = 0.0
        for counts in (self._drained, self._undrained()):
            for (metric, tags), amount in counts.items():
                if metric is not STAGE_SECONDS or tags[0] == "total":
                    sums[metric] += amount
                if metric is REQUESTS and tags[0] == "200":
                    succeeded += amount
        return Totals(
            sums[REQUESTS],
            sums[REQUESTS] - succeeded,
            sums[TEXTS],
            sums[CACHED_TEXTS],
            sums[TOKENS],
            sums[STAGE_SECONDS],
            sums[COST_NANO_USD],
            sums[SAVED_NANO_USD],
        )


class ModelMeter:
    """Adds to the counters of a process for one model, whose name is the last tag of each."""

    def __init__(self, process: Meter, model: str) -> None:
        self.process = process  #: the meter of the process, which drains this one
        self.model = model
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Adds to a counter; see `Meter.add`.

        Args:
            metric: the metric to count; the last of its tags is `model`.
            amount: at least 0.
            tags: values in the order of `metric.tags`, without the model.
        """
        self._pending[metric, tags] += amount

    def counts(self) -> Counts:
        """Returns the counts since the last `clear`, with the model among the tags."""
        return {
            (metric, (*tags, self.model)): amount
            for (metric, tags), amount in self._pending.items()
        }

    def clear(self) -> None:
        """Begins at zero."""
        self._pending.clear()


def process_gauges() -> Gauges:
    """Returns CPU time and memory of this process."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return {
            PROCESS_CPU_SECONDS: times.user + times.system,
            PROCESS_MEMORY_BYTES: float(process.memory_info().rss),
        }


async def export(meter: Meter, gauges: Callable[[], Gauges] = dict) -> None:
    """Exports a meter's counts and the current gauges to Ray every second until cancelled.

    Those of the process are added.
    """
    from ray.serve import metrics

    instruments: dict[Metric, Any] = {}

    def instrument(metric: Metric) -> Any:
        if metric not in instruments:
            kind: Any = metrics.Gauge if metric in GAUGES else metrics.Counter
            instruments[metric] = kind(metric.name, metric.description, metric.tags)
        return instruments[metric]

    while True:
        for (metric, tags), amount in meter.drain().items():
            if amount > 0:
                instrument(metric).inc(amount, dict(zip(metric.tags, tags, strict=True)))
        for metric, value in {**gauges(), **process_gauges()}.items():
            if isinstance(value, Mapping):
                for tags, tagged in value.items():
                    instrument(metric).set(tagged, dict(zip(metric.tags, tags, strict=True)))
            else:
                instrument(metric).set(value)
        await asyncio.sleep(_EXPORT_INTERVAL_S)
