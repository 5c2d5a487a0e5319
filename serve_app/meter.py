"""Counts the service's metrics: counts in a `Meter` → `export` → Ray's metrics → Prometheus.

A call into Ray's metrics takes some microseconds, too slow for each step of each request. The code
counts in a `Meter` instead, and each deployment exports its meter every second.

Histograms are exported as gauges, one for each bucket. Ray's own histograms take a call for each
value, and its agents rebuild the values from the middle of their buckets, so that sums are wrong.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psutil

from serve_app.histogram import Histogram
from serve_app.metrics import (
    CACHED_TEXTS,
    COST_NANO_USD,
    PROCESS_CPU_SECONDS,
    PROCESS_MEMORY_BYTES,
    REQUEST_DURATION,
    REQUESTS,
    SAVED_NANO_USD,
    TEXTS,
    TOKENS,
    Metric,
)
from serve_app.totals import Totals

_EXPORT_INTERVAL_S = 1.0
#: Of the names of a histogram's samples, in the order of the text format.
HISTOGRAM_SUFFIXES = BUCKET, SUM, COUNT = "_bucket", "_sum", "_count"
#: Calls into Ray's metrics in a row, about a millisecond, before other work of the event loop runs.
_MAX_CALLS = 200

#: The current value of each gauge; of a gauge with tags, the value for the values of its tags.
Gauges = Mapping[Metric, float | Mapping[Any, float]]
#: The value of each counter, by metric and the values of its tags.
Counts = Mapping[tuple[Metric, tuple[str, ...]], float]
#: Each histogram, by metric and the values of its tags.
Histograms = Mapping[tuple[Metric, tuple[str, ...]], Histogram]


class _Histograms(dict[tuple[Metric, tuple[str, ...]], Histogram]):
    def __missing__(self, key: tuple[Metric, tuple[str, ...]]) -> Histogram:
        histogram = self[key] = Histogram(key[0].buckets)
        return histogram


class Meter:
    """Counters and histograms of one process. Belongs to one event loop.

    Counters are kept since the last drain and in total, histograms in total.
    """

    def __init__(self) -> None:
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._histograms = _Histograms()
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

    def observe(self, metric: Metric, value: float, *tags: str) -> None:
        """Adds a value to a histogram.

        Args:
            metric: a metric with buckets.
            value: in the unit of the metric, at least 0.
            tags: values in the order of `metric.tags`.
        """
        self._histograms[metric, tags].observe(value)

    def observe_all(self, metric: Metric, values: Iterable[float], *tags: str) -> None:
        """Adds several values to a histogram; see `observe`."""
        self._histograms[metric, tags].observe_all(values)

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

    def lifetime_counts(self) -> Counts:
        """Returns the counts since the start. Doesn't affect `drain`."""
        counts = self._drained.copy()
        for key, amount in self._undrained().items():
            counts[key] += amount
        return counts

    def value(self, metric: Metric, *tags: str) -> float:
        """Returns a counter's value since the start. Doesn't affect `drain`."""
        return self._drained.get((metric, tags), 0.0) + self._undrained().get((metric, tags), 0.0)

    def histograms(self) -> Histograms:
        """Returns the histograms of all models, with the values since the start."""
        histograms = dict(self._histograms)
        for meter in self._models.values():
            histograms.update(meter.histograms())
        return histograms

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
                sums[metric] += amount
                if metric is REQUESTS and tags[0] == "200":
                    succeeded += amount
        seconds = sum(
            histogram.sum
            for (metric, _), histogram in self.histograms().items()
            if metric is REQUEST_DURATION
        )
        return Totals(
            sums[REQUESTS],
            sums[REQUESTS] - succeeded,
            sums[TEXTS],
            sums[CACHED_TEXTS],
            sums[TOKENS],
            seconds,
            sums[COST_NANO_USD],
            sums[SAVED_NANO_USD],
        )


class ModelMeter:
    """Counts for one model of a process, whose name is the last tag of each metric."""

    def __init__(self, process: Meter, model: str) -> None:
        self.process = process  #: the meter of the process, which drains this one
        self.model = model
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._histograms = _Histograms()

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Adds to a counter; see `Meter.add`.

        Args:
            metric: the metric to count; the last of its tags is `model`.
            amount: at least 0.
            tags: values in the order of `metric.tags`, without the model.
        """
        self._pending[metric, tags] += amount

    def observe(self, metric: Metric, value: float, *tags: str) -> None:
        """Adds a value to a histogram; see `Meter.observe`.

        Args:
            metric: a metric with buckets; the last of its tags is `model`.
            value: in the unit of the metric, at least 0.
            tags: values in the order of `metric.tags`, without the model.
        """
        self._histograms[metric, tags].observe(value)

    def histograms(self) -> Histograms:
        """Returns the histograms, with the model among the tags."""
        return {
            (metric, (*tags, self.model)): histogram
            for (metric, tags), histogram in self._histograms.items()
        }

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
    """Exports a meter's metrics and the current gauges to Ray every second until cancelled.

    Those of the process are added.
    """
    from ray.serve import metrics

    instruments: dict[str, Any] = {}
    while True:
        for calls, sample in enumerate(_samples(meter, gauges), 1):
            name = sample.metric.name + sample.suffix
            if name not in instruments:
                kind: Any = metrics.Counter if sample.is_counter else metrics.Gauge
                instruments[name] = kind(name, sample.metric.description, tuple(sample.tags))
            if sample.is_counter:
                instruments[name].inc(sample.value, sample.tags)
            else:
                instruments[name].set(sample.value, sample.tags)
            if calls % _MAX_CALLS == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(_EXPORT_INTERVAL_S)


class _Sample(NamedTuple):
    """A value as Ray's metrics take it."""

    metric: Metric
    suffix: str  #: of the metric's name
    tags: dict[str, str]
    value: float
    is_counter: bool = False  #: whether the value is added to a counter; else it sets a gauge


def _samples(meter: Meter, gauges: Callable[[], Gauges]) -> Iterator[_Sample]:
    for (metric, tags), amount in meter.drain().items():
        if amount > 0:
            yield _Sample(metric, "", _tags(metric, tags), amount, is_counter=True)
    for metric, value in {**gauges(), **process_gauges()}.items():
        by_tags = value if isinstance(value, Mapping) else {(): value}
        for tags, tagged in by_tags.items():
            yield _Sample(metric, "", _tags(metric, tags), tagged)
    for (metric, tags), histogram in meter.histograms().items():
        yield from _histogram_samples(metric, _tags(metric, tags), histogram)


def _histogram_samples(
    metric: Metric, tags: dict[str, str], histogram: Histogram
) -> Iterator[_Sample]:
    buckets, total = histogram.buckets(), histogram.sum
    # The largest first: whoever reads meanwhile finds no bucket with less than one below it.
    for bound, count in reversed(buckets):
        yield _Sample(metric, BUCKET, {**tags, "le": bound}, count)
    yield _Sample(metric, SUM, tags, total)
    yield _Sample(metric, COUNT, tags, buckets[-1][1])


def _tags(metric: Metric, values: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.tags, values, strict=True))
