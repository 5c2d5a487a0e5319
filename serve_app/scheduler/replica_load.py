"""What a replica reports to the autoscaler every second."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """The load of a replica since its previous report. Field names are metric names."""

    queued_interactive_tokens: float = 0.0  #: waiting or being computed
    queued_bulk_tokens: float = 0.0  #: waiting or being computed
    oldest_interactive_s: float = 0.0  #: age of the oldest interactive text that waits; 0: none
    offered_interactive_tokens_per_s: float = 0.0  #: admitted for the first time
    offered_bulk_tokens_per_s: float = 0.0  #: admitted for the first time
    served_tokens_per_s: float = 0.0  #: computed, of both lanes
    busy_share: float = 0.0  #: share of the time in which the engine ran, from 0 to 1
    capacity_tokens_per_s: float = 0.0  #: speed in full batches; 0: unknown
    startup_s: float = 0.0  #: from the start of the process to the first vector; 0: unknown

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> Self | None:
        """Returns the load, with 0 for what is missing; None if a value can't be true."""
        load = cls(**{name: float(metrics.get(name, 0.0)) for name in _NAMES})
        return load if load.is_plausible else None

    @property
    def is_plausible(self) -> bool:
        """Whether all values are finite, none is negative and the busy share is at most 1."""
        values = [getattr(self, name) for name in _NAMES]
        return all(0 <= v < math.inf for v in values) and self.busy_share <= 1.01


_NAMES = tuple(field.name for field in fields(ReplicaLoad))
