"""What the models of a process have queued and computed, at one moment."""

from collections.abc import Mapping
from typing import NamedTuple

from serve_app.types import Lane


class PoolSample(NamedTuple):
    """The state of a pool of models. Reading it changes nothing."""

    #: Tokens that are queued or being computed, by lane and model.
    queued_tokens: Mapping[tuple[Lane, str], float]
    oldest_s: Mapping[Lane, float]  #: for how long the oldest text of a lane has waited
    budget_tokens: Mapping[str, float]  #: current limit of padded tokens in a batch, by model
    busy_s: float | None  #: how long at least one batch has run; None: the pool has no engines

    def plus(self, other: "PoolSample") -> "PoolSample":
        """Returns the sample of both pools, whose models differ."""
        oldest = dict(self.oldest_s)
        for lane, seconds in other.oldest_s.items():
            oldest[lane] = max(seconds, oldest.get(lane, 0.0))
        return PoolSample(
            {**self.queued_tokens, **other.queued_tokens},
            oldest,
            {**self.budget_tokens, **other.budget_tokens},
            other.busy_s if self.busy_s is None else self.busy_s,
        )
