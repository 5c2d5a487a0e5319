"""All replicas that answer for one service: what they have counted together."""

from typing import Protocol

from serve_app.metrics import Meter, Totals


class Fleet(Protocol):
    """The replicas of a service."""

    async def totals(self) -> Totals:
        """What all of them have answered."""
        ...

    async def begin_anew(self) -> None:
        """Has all of them count `totals` from zero."""
        ...

    async def exposition(self) -> str:
        """Every metric of the service, in Prometheus' text format."""
        ...


class Alone:
    """A service that is one process."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def totals(self) -> Totals:
        """What it has answered."""
        return self._meter.totals()

    async def begin_anew(self) -> None:
        """Counts `totals` from zero."""
        self._meter.begin_anew()

    async def exposition(self) -> str:
        """Nothing: its metrics go nowhere."""
        return ""
