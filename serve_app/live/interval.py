"""What has changed between two samples of a service: counts → amounts and rates."""

from collections import defaultdict
from collections.abc import Iterator

from serve_app.live.fleet_sample import FleetSample
from serve_app.live.quantile import quantile
from serve_app.live.replica_sample import ReplicaIdentity, ReplicaSample
from serve_app.live.sampled_metrics import SAMPLED
from serve_app.meter import BUCKET
from serve_app.metrics import Metric


class Interval:
    """The time between two samples of a service.

    Counts are compared replica by replica, each by its own clock. A replica that is in one of the
    samples only doesn't count, unless it has started in between: then it has counted from 0.

    A metric that isn't one of `SAMPLED` would always be 0; its methods raise a `ValueError`.
    """

    def __init__(self, before: FleetSample | None, after: FleetSample) -> None:
        """Compares two samples.

        Args:
            before: the earlier one; None: nothing is known, and all rates are None.
            after: the later one.
        """
        self._before = before
        self._amounts = _Sums()
        self._http_amounts = _Sums()
        self._rates = _Sums()
        self._busy_shares: dict[ReplicaIdentity, float] = {}
        self._seconds = 0.0
        for earlier, later, seconds in self._pairs(before, after):
            self._seconds = max(self._seconds, seconds)
            self._compare(earlier, later, seconds)

    @property
    def is_known(self) -> bool:
        """Whether any replica is in both samples."""
        return self._seconds > 0

    def amount(
        self, metric: Metric, *tags: str | None, suffix: str = "", http: bool = False
    ) -> float:
        """Returns by how much a counter has risen, over all replicas.

        Args:
            metric: the counter.
            tags: the values of its first tags; None stands for any value.
            suffix: of a histogram's counter.
            http: whether to count those replicas only that take HTTP requests.
        """
        amounts = self._http_amounts if http else self._amounts
        return amounts.total(_sampled_name(metric) + suffix, tags)

    def per_s(self, metric: Metric, *tags: str | None, suffix: str = "") -> float | None:
        """Returns the rise of a counter per second, over all replicas; None: it isn't known."""
        name = _sampled_name(metric) + suffix
        return self._rates.total(name, tags) if self.is_known else None

    def quantile(self, share: float, metric: Metric, *tags: str | None) -> float | None:
        """Returns a quantile of the values that a histogram has got; None: it has got none.

        Args:
            share: of the values that are at most the result, from 0 to 1.
            metric: the histogram.
            tags: the values of its first tags; None stands for any value.
        """
        buckets = defaultdict[float, float](float)
        for values, amount in self._amounts.matching(_sampled_name(metric) + BUCKET, tags):
            buckets[float(values[-1])] += amount
        return quantile(share, buckets)

    def ratio(self, part: float, whole: float) -> float | None:
        """Returns the quotient of two amounts; None: there is nothing to divide by."""
        return part / whole if whole > 0 else None

    def busy_share(self, replica: ReplicaIdentity) -> float | None:
        """Returns the share of the time in which a batch ran; None: it isn't known."""
        return self._busy_shares.get(replica)

    def _pairs(
        self, before: FleetSample | None, after: FleetSample
    ) -> Iterator[tuple[ReplicaSample | None, ReplicaSample, float]]:
        if before is None:
            return
        earlier = {sample.identity: sample for sample in before.replicas}
        known = [
            (earlier[s.identity], s, s.taken_s - earlier[s.identity].taken_s)
            for s in after.replicas
            if s.identity in earlier and s.taken_s > earlier[s.identity].taken_s
        ]
        yield from known
        longest_s = max((seconds for _, _, seconds in known), default=0.0)
        for sample in after.replicas:
            if sample.identity not in earlier and 0 < sample.uptime_s <= longest_s:
                yield None, sample, longest_s

    def _compare(self, earlier: ReplicaSample | None, later: ReplicaSample, seconds: float) -> None:
        counts = {} if earlier is None else earlier.counts
        for key, value in later.counts.items():
            rise = value - counts.get(key, 0.0)
            if rise >= 0:  # an empty bucket is a bound of the next one
                self._amounts.add(key, rise)
                self._rates.add(key, rise / seconds)
                if later.takes_requests:
                    self._http_amounts.add(key, rise)
        busy_s = None if later.pool is None else later.pool.busy_s
        if busy_s is not None:
            before_s = earlier.pool.busy_s if earlier and earlier.pool else 0.0
            share = (busy_s - (before_s or 0.0)) / seconds
            self._busy_shares[later.identity] = min(1.0, max(0.0, share))


def _sampled_name(metric: Metric) -> str:
    if metric not in SAMPLED:
        raise ValueError(f"{metric.name} isn't sampled. Add it to `live/sampled_metrics.py`.")
    return metric.name


class _Sums:
    """Sums by name and tags."""

    def __init__(self) -> None:
        self._by_name = defaultdict[str, defaultdict[tuple[str, ...], float]](
            lambda: defaultdict(float)
        )

    def add(self, key: tuple[str, tuple[str, ...]], amount: float) -> None:
        name, tags = key
        self._by_name[name][tags] += amount

    def matching(
        self, name: str, tags: tuple[str | None, ...]
    ) -> Iterator[tuple[tuple[str, ...], float]]:
        for values, amount in self._by_name.get(name, {}).items():
            if all(tag in (None, value) for tag, value in zip(tags, values, strict=False)):
                yield values, amount

    def total(self, name: str, tags: tuple[str | None, ...]) -> float:
        return sum(amount for _, amount in self.matching(name, tags))
