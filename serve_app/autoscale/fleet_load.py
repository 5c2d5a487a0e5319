"""The load of all replicas of a deployment, from the reports that arrived."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

from serve_app.scheduler.replica_load import ReplicaLoad

#: A replica that is busy all the time, serves nothing, and holds texts this long, is stuck.
_STUCK_AFTER_S = 10.0
#: A replica that serves this share of its capacity has no time left.
_SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class FleetLoad:
    """Sums over all running replicas; those whose reports are lost count as the mean of others."""

    replicas: int  #: running
    reported: int  #: replicas with a plausible report
    stuck: int  #: replicas that hold texts and compute nothing
    saturated: int  #: replicas that can't serve more than they do
    queued_interactive_tokens: float
    queued_bulk_tokens: float
    oldest_interactive_s: float
    offered_interactive_tokens_per_s: float
    offered_bulk_tokens_per_s: float
    served_tokens_per_s: float
    busy_replicas: float  #: sum of the busy shares
    capacity_tokens_per_s: float  #: of one replica: the median; 0: unknown
    startup_s: float  #: the median; 0: unknown

    @property
    def is_idle(self) -> bool:
        """Whether no text has come since the previous reports, and none waits or is computed."""
        return not (
            self.queued_interactive_tokens
            or self.queued_bulk_tokens
            or self.offered_interactive_tokens_per_s
            or self.offered_bulk_tokens_per_s
            or self.served_tokens_per_s
            or self.stuck
        )


def sum_reports(reports: Mapping[str, ReplicaLoad], running: int, new: int = 0) -> FleetLoad:
    """Adds up the reports.

    Replicas that report impossible values count as lost. The capacity and the start-up time are
    medians, so a minority of wrong values moves neither.

    Args:
        reports: by replica; recent ones only.
        running: number of running replicas.
        new: how many of them have not reported yet, because they have just started. No load has
            come to them that another one's report doesn't have.
    """
    plausible = [load for load in reports.values() if load.is_plausible]
    healthy = [load for load in plausible if not _is_stuck(load)]
    stuck = len(plausible) - len(healthy)
    capacity = _median([load.capacity_tokens_per_s for load in healthy])
    count = max(running - stuck - new, len(healthy))
    scale = count / len(healthy) if healthy else 0.0

    def total(name: str) -> float:
        return scale * math.fsum(getattr(load, name) for load in healthy)

    return FleetLoad(
        replicas=running,
        reported=len(plausible),
        stuck=stuck,
        saturated=sum(
            load.busy_share >= _SATURATED and load.served_tokens_per_s >= _SATURATED * capacity
            for load in healthy
        ),
        queued_interactive_tokens=total("queued_interactive_tokens"),
        queued_bulk_tokens=total("queued_bulk_tokens"),
        oldest_interactive_s=max((load.oldest_interactive_s for load in healthy), default=0.0),
        offered_interactive_tokens_per_s=total("offered_interactive_tokens_per_s"),
        offered_bulk_tokens_per_s=total("offered_bulk_tokens_per_s"),
        served_tokens_per_s=total("served_tokens_per_s"),
        busy_replicas=total("busy_share"),
        capacity_tokens_per_s=capacity,
        startup_s=_median([load.startup_s for load in healthy]),
    )


def _is_stuck(load: ReplicaLoad) -> bool:
    return (
        load.busy_share >= _SATURATED
        and load.served_tokens_per_s == 0
        and load.oldest_interactive_s >= _STUCK_AFTER_S
    )


def _median(values: list[float]) -> float:
    known = [value for value in values if value > 0]
    return median_low(known) if known else 0.0
