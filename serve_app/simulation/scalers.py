"""Policies as the simulator calls them, once per second."""

from dataclasses import dataclass
from typing import Protocol

from serve_app.autoscale.fleet_load import FleetLoad
from serve_app.autoscale.policy import (
    Bounds,
    Decision,
    PolicyState,
    decide_for_fleet,
)
from serve_app.config import PolicySettings


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy knows."""

    now_s: float
    running: int
    target: int
    bounds: Bounds
    load: FleetLoad
    ongoing_requests: float  #: queued and being computed


class Scaler(Protocol):
    """Chooses the number of replicas. Belongs to one simulation."""

    def decide(self, seen: Observation) -> Decision:
        """Returns the number of replicas from now on."""
        ...


class TokenScaler:
    """The policy of the service."""

    def __init__(self, settings: PolicySettings | None = None) -> None:
        self._settings = settings or PolicySettings()
        self._state = PolicyState()

    def decide(self, seen: Observation) -> Decision:
        """See `Scaler`."""
        decision, self._state = decide_for_fleet(
            seen.load,
            target=seen.target,
            bounds=seen.bounds,
            now_s=seen.now_s,
            state=self._state,
            settings=self._settings,
        )
        return decision


class FixedScaler:
    """Always the same number."""

    def __init__(self, replicas: int) -> None:
        self._decision = Decision(replicas, "fixed")

    def decide(self, seen: Observation) -> Decision:
        """See `Scaler`."""
        return self._decision
