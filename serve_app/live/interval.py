"""What has changed between two samples of a service: counts → amounts and rates."""

from collections import defaultdict
from collections.abc import Iterator

from serve_app.live.fleet_sample import FleetSample
from serve_app.live.replica_sample import NamedCounts, ReplicaIdentity, ReplicaSample
from serve_app.metrics import Metric


class Interval:
    """The time between two samples of a service.

    Counts are compared replica by replica, each by its own clock. A replica that is in one of the
    samples only doesn't count, unless it has started in between: then it has counted from 0.
    """

    def __init__(self, before: FleetSample | None, after: FleetSample) -> None:
        """Compares two samples.

        Args:
            before: the earlier one; None: nothing is known, and all rates are None.
            after: the later one.
        """
        self._before = before
        self._amounts = defaultdict[tuple[str, tuple[str, ...]], float](float)
        self._http_amounts = defaultdict[tuple[str, tuple[str, ...]], float](float)
        self._rates = defaultdict[tuple[str, tuple[str, ...]], float](float)
        self._busy_shares: dict[ReplicaIdentity, float] = {}
        self._seconds = 0.0
        for earlier, later, seconds in self._pairs(before, after):
            self._seconds = max(self._seconds, seconds)
            self._compare(earlier, later, seconds)

    @property
    def is_known(self) -> bool:
        """Whether any replica is in both samples."""
        return self._seconds > 0

    def amount(self, metric: Metric, *tags: str | None, http: bool = False) -> float:
        """Returns by how much a counter has risen, over all replicas.

        Args:
            metric: the counter.
            tags: the values of its first tags; None stands for any value.
            http: whether to count those replicas only that take HTTP requests.
        """
        return _total(self._http_amounts if http else self._amounts, metric, tags)

    def per_s(self, metric: Metric, *tags: str | None) -> float | None:
        """Returns the rise of a counter per second, over all replicas; None: it isn't known."""
        return _total(self._rates, metric, tags) if self.is_known else None

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
            if rise > 0:
                self._amounts[key] += rise
                self._rates[key] += rise / seconds
                if later.takes_requests:
                    self._http_amounts[key] += rise
        busy_s = None if later.pool is None else later.pool.busy_s
        if busy_s is not None:
            before_s = earlier.pool.busy_s if earlier and earlier.pool else 0.0
            share = (busy_s - (before_s or 0.0)) / seconds
            self._busy_shares[later.identity] = min(1.0, max(0.0, share))


def _total(counts: NamedCounts, metric: Metric, tags: tuple[str | None, ...]) -> float:
    return sum(
        value
        for (name, values), value in counts.items()
        if name == metric.name
        if all(tag in (None, value) for tag, value in zip(tags, values, strict=False))
    )
