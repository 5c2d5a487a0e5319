"""Statistics over all replicas of a service."""

from typing import Protocol

from serve_app.metrics import Meter, Totals


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


class SingleReplica:
    """The statistics of a service that runs in one process."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def totals(self) -> Totals:
        """Returns the totals of this process."""
        return self._meter.totals()

    async def reset(self) -> None:
        """Resets the totals of this process to zero."""
        self._meter.reset()

    async def prometheus_text(self) -> str:
        """Returns the empty string: a single process exports no metrics."""
        return ""
