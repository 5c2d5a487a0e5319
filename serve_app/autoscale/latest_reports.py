"""The latest report of each replica."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from serve_app.scheduler.replica_load import ReplicaLoad

#: Older reports count as lost.
_MAX_AGE_S = 5.0
#: The first report of a replica is old if it was written longer ago, by the clock of its node.
_MAX_CLOCK_DIFFERENCE_S = 30.0


class _Report(NamedTuple):
    written_s: float  # by the clock of the replica's node
    arrived_s: float  # by the clock of this process
    load: ReplicaLoad | None  # None: its values can't be true


class LatestReports:
    """Keeps the latest report of each replica.

    The clocks of nodes differ, so the age of a report is the time since it has changed.
    """

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}
        #: When each running replica was seen first; those that ran before this process: long ago.
        self._seen_s: dict[str, float] | None = None
        #: When the earliest of the latest reports has arrived.
        self.earliest_arrival_s = -math.inf

    def update(
        self, raw_metrics: Mapping[str, Mapping[Any, Sequence[Any]]], now_s: float
    ) -> Mapping[str, ReplicaLoad]:
        """Returns the load by replica, without old and implausible reports.

        Args:
            raw_metrics: name of a metric → replica → samples, as Ray passes them.
            now_s: the current time.
        """
        values: dict[str, dict[str, float]] = {}
        written_s: dict[str, float] = {}
        for name, series in raw_metrics.items():
            for replica, samples in series.items():
                if samples:
                    values.setdefault(str(replica), {})[name] = samples[-1].value
                    written_s[str(replica)] = samples[-1].timestamp
        for replica, metrics in values.items():
            known = self._reports.get(replica)
            if known is None or known.written_s != written_s[replica]:
                is_old = known is None and now_s - written_s[replica] > _MAX_CLOCK_DIFFERENCE_S
                arrived_s = -math.inf if is_old else now_s
                load = ReplicaLoad.from_metrics(metrics)
                self._reports[replica] = _Report(written_s[replica], arrived_s, load)
        # An old one stays known, or it would count as new.
        self._reports = {r: report for r, report in self._reports.items() if r in values}
        recent = {r: x for r, x in self._reports.items() if now_s - x.arrived_s <= _MAX_AGE_S}
        self.earliest_arrival_s = min((x.arrived_s for x in recent.values()), default=-math.inf)
        return {r: report.load for r, report in recent.items() if report.load is not None}

    def count_new(self, running: Collection[Any], now_s: float) -> int:
        """Returns how many replicas started so recently that their first report is on its way.

        Args:
            running: the running replicas.
            now_s: the current time.
        """
        first_s = -math.inf if self._seen_s is None else now_s
        seen_s = self._seen_s or {}
        self._seen_s = {r: seen_s.get(r, first_s) for r in map(str, running)}
        unreported = (s for r, s in self._seen_s.items() if r not in self._reports)
        return sum(now_s - s <= _MAX_AGE_S for s in unreported)
