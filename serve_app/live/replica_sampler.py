"""Takes samples of this process."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import psutil

from serve_app.access.entrance import KeyLevel
from serve_app.cache.stack import CacheStack
from serve_app.live.replica_sample import NamedCounts, ReplicaIdentity, ReplicaSample
from serve_app.live.sampled_metrics import BUCKETED, COUNTERS, SUMMED
from serve_app.live.shadow_sample import ShadowSample
from serve_app.meter import BUCKET, COUNT, SUM, Meter
from serve_app.scheduler.pool_sample import PoolSample


class ReplicaSampler:
    """Takes samples of this process. Belongs to its event loop."""

    def __init__(
        self,
        identity: ReplicaIdentity,
        meter: Meter,
        *,
        in_flight: Callable[[], int] | None = None,
        pool: Callable[[], PoolSample] | None = None,
        cache: CacheStack | None = None,
        keys: Callable[[], Mapping[str, KeyLevel]] = dict,
        shadows: Callable[[], Sequence[ShadowSample]] = tuple,
    ) -> None:
        """Creates a sampler.

        Args:
            identity: of the process.
            meter: its counters.
            in_flight: returns the number of HTTP requests in progress; None: it takes none.
            pool: returns the state of its models; None: it has none.
            cache: its tiers; None: it has none.
            keys: returns how much of its quota each API key has left, by name.
            shadows: returns how models compare.
        """
        self.identity = identity
        self._meter = meter
        self._in_flight = in_flight
        self._pool = pool
        self._cache = cache
        self._keys = keys
        self._shadows = shadows
        self._process = psutil.Process()
        self._started_unix = self._process.create_time()

    def sample(self) -> ReplicaSample:
        """Returns the state of now. Changes no counter."""
        cache = self._cache
        return ReplicaSample(
            self.identity,
            os.getpid(),
            time.monotonic(),
            time.time() - self._started_unix,
            self._process.memory_info().rss,
            self._counts(),
            None if self._in_flight is None else self._in_flight(),
            None if self._pool is None else self._pool(),
            None if cache is None else cache.l1_stats,
            None if cache is None else cache.state,
            self._keys(),
            self._shadows(),
        )

    def _counts(self) -> NamedCounts:
        # By name: a metric is compared by identity, which doesn't survive a call between processes.
        counts = defaultdict[tuple[str, tuple[str, ...]], float](float)
        for (metric, tags), value in self._meter.lifetime_counts().items():
            if metric in COUNTERS:
                counts[metric.name, tags] = value
        for (metric, tags), histogram in self._meter.histograms().items():
            if metric in SUMMED:
                counts[metric.name + COUNT, tags] = histogram.count
                counts[metric.name + SUM, tags] = histogram.sum
            elif metric in BUCKETED:
                _, *other_tags = tags
                for bound, count in histogram.buckets():
                    counts[metric.name + BUCKET, (*other_tags, bound)] += count
        return dict(counts)
