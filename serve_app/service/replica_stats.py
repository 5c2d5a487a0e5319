"""Statistics over all replicas of a service."""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.live.fleet_sample import FleetSample
from serve_app.live.replica_sample import ReplicaIdentity
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Counts, Gauges, Histograms, Meter
from serve_app.metrics import RAY_PREFIX, Metric
from serve_app.totals import Totals


class ReplicaStats(Protocol):
    """Combines the statistics of the replicas that serve the same application."""

    async def totals(self) -> Totals:
        """Returns the sum of the replicas' totals."""
        ...

    async def reset(self) -> None:
        """Resets the totals of every replica to zero."""
        ...

    async def prometheus_text(self) -> str:
        """Returns all metrics of the service in the Prometheus text format."""
        ...

    async def scaling(self) -> list[ScalingRecord]:
        """Returns the latest decision for each deployment that scales.

        Raises:
            Unavailable: they can't be read.
        """
        ...

    async def sample(self) -> FleetSample:
        """Returns the state of all replicas. Bounded in time; those that don't answer are named."""
        ...


class SingleReplica:
    """The statistics of a service that runs in one process."""

    def __init__(
        self,
        meter: Meter,
        gauges: Callable[[], Gauges] = dict,
        sampler: ReplicaSampler | None = None,
    ) -> None:
        """Creates the statistics.

        Args:
            meter: the counts of the process.
            gauges: returns the current value of each gauge.
            sampler: samples the process; None: one that knows nothing but the meter.
        """
        self._meter = meter
        self._gauges = gauges
        self._sampler = sampler or ReplicaSampler(this_process(), meter, in_flight=lambda: 0)

    async def totals(self) -> Totals:
        """Returns the totals of this process."""
        return self._meter.totals()

    async def reset(self) -> None:
        """Resets the totals of this process to zero."""
        self._meter.reset()

    async def prometheus_text(self) -> str:
        """Returns the metrics of this process, with the names that Ray exports."""
        registry = CollectorRegistry()
        gauges = self._gauges()  # first: they count evictions since the last call
        registry.register(_Collector(self._meter.counts(), self._meter.histograms(), gauges))
        return generate_latest(registry).decode()

    async def scaling(self) -> list[ScalingRecord]:
        """Returns nothing: one process doesn't scale."""
        return []

    async def sample(self) -> FleetSample:
        """Returns the state of this process."""
        sample = self._sampler.sample()
        return FleetSample([sample], targets={sample.identity.deployment: 1})


def this_process() -> ReplicaIdentity:
    """Returns the identity of a process that is the whole service."""
    return ReplicaIdentity("standalone", str(os.getpid()), socket.gethostname())


class _Collector(Collector):
    """The metrics of a process, as `prometheus_client` reads them."""

    def __init__(self, counts: Counts, histograms: Histograms, gauges: Gauges) -> None:
        self._counts = counts
        self._histograms = histograms
        self._gauges = gauges

    def collect(self) -> Iterator[Family]:
        """Yields each metric with its samples."""
        counters: dict[Metric, CounterMetricFamily] = {}
        for (metric, tags), value in self._counts.items():
            if metric not in counters:
                counters[metric] = CounterMetricFamily(
                    RAY_PREFIX + metric.name, metric.description, labels=metric.tags
                )
            counters[metric].add_metric(tags, value)
        yield from counters.values()
        histograms: dict[Metric, HistogramMetricFamily] = {}
        for (metric, tags), histogram in self._histograms.items():
            if metric not in histograms:
                histograms[metric] = HistogramMetricFamily(
                    RAY_PREFIX + metric.name, metric.description, labels=metric.tags
                )
            histograms[metric].add_metric(tags, histogram.buckets(), histogram.sum)
        yield from histograms.values()
        for metric, current in self._gauges.items():
            gauge = GaugeMetricFamily(
                RAY_PREFIX + metric.name, metric.description, labels=metric.tags
            )
            by_tags = current if isinstance(current, Mapping) else {(): current}
            for tags, number in by_tags.items():
                gauge.add_metric(tags, number)
            yield gauge
