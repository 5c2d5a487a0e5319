"""The canaries of the models of a process."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from serve_app.meter import Gauges
from serve_app.metrics import VECTOR_DRIFT
from serve_app.scheduler.canary import Canary


class CanarySchedule(NamedTuple):
    """Which vectors a canary measures, and how often."""

    space_id: str  #: of the vectors as they are computed
    interval_s: float


class Canaries:
    """Runs the canaries of several models. Belongs to one event loop."""

    def __init__(self, canaries: Mapping[str, Canary]) -> None:
        """Creates them; `start` runs them.

        Args:
            canaries: by the `engine_id` of their models; may be empty.
        """
        self._canaries = canaries
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the canaries. Idempotent; call it in the event loop."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(c.run()) for c in self._canaries.values()]

    def stop(self) -> None:
        """Stops the canaries."""
        for task in self._tasks:
            task.cancel()

    def drift(self, engine_id: str) -> float | None:
        """Returns the drift of a model; None: it isn't measured."""
        canary = self._canaries.get(engine_id)
        return None if canary is None else canary.drift

    def gauges(self) -> Gauges:
        """Returns the drift of each model that is measured."""
        canaries = self._canaries.values()
        return {VECTOR_DRIFT: {(c.model,): c.drift for c in canaries if c.drift is not None}}
