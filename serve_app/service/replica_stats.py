"""All replicas that answer for one service: what they have counted together."""

from typing import Protocol

from serve_app.metrics import Meter, Totals


class ReplicaStats(Protocol):
    """The replicas of a service."""

    async def totals(self) -> Totals:
        """What all of them have answered."""
        ...

    async def reset(self) -> None:
        """Has all of them count `totals` from zero."""
        ...

    async def prometheus_text(self) -> str:
        """Every metric of the service, in Prometheus' text format."""
        ...


class SingleReplica:
    """A service that is one process."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def totals(self) -> Totals:
        """What it has answered."""
        return self._meter.totals()

    async def reset(self) -> None:
        """Counts `totals` from zero."""
        self._meter.reset()

    async def prometheus_text(self) -> str:
        """Nothing: its metrics go nowhere."""
        return ""
