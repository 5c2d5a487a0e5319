"""What this process has on its way to each deployment, and when it will be computed."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from serve_app.cache.spill_over import Forecast
from serve_app.deployments.assigned_tokens import AssignedTokens, ahead_of
from serve_app.types import Lane, TextGroup

#: A deployment whose speed isn't known yet gets a call of up to so many tokens, one at a time.
_TRIAL_TOKENS = 2048


class DeploymentQueue:
    """The tokens on their way to one deployment.

    Those of calls that are to be routed are in no replica's queue yet: many calls are sent before
    Ray routes the first of them. They are what has been sent and not assigned.
    """

    def __init__(self, callers: Callable[[], int]) -> None:
        """Creates an empty queue; `callers` returns how many processes send as much as this one."""
        self._callers = callers
        self._sent: dict[Lane, int] = {"interactive": 0, "bulk": 0}
        self._assigned = AssignedTokens[Any]()
        self._speeds: Callable[[], Mapping[Any, float]] = dict

    def follow(
        self, assigned: AssignedTokens[Any], speeds: Callable[[], Mapping[Any, float]]
    ) -> None:
        """Takes what a router knows.

        Args:
            assigned: what it has sent to each replica.
            speeds: returns tokens per second of each replica; 0: unknown.
        """
        self._assigned, self._speeds = assigned, speeds

    @contextmanager
    def sending(self, groups: tuple[TextGroup, ...]) -> Iterator[None]:
        """Counts groups of one lane as long as the context lasts."""
        lane, tokens = groups[0].lane, sum(group.estimated_tokens for group in groups)
        self._sent[lane] += tokens
        try:
            yield
        finally:
            self._sent[lane] -= tokens

    def forecast(self, lane: Lane, tokens: int) -> Forecast | None:
        """Returns when texts of so many tokens would be computed.

        None if no replica can be reached, or if no speed is known and other tokens are on their
        way to find it out.
        """
        speeds = self._speeds()
        waits = self._assigned.waits(speeds, lane)
        if not waits:
            is_unknown = bool(speeds) and not any(speeds.values())
            is_trial = is_unknown and tokens <= _TRIAL_TOKENS and not any(self._sent.values())
            return Forecast(0.0, 0.0) if is_trial else None
        ahead = ahead_of(lane)
        sent = sum([self._sent[n] for n in ahead])
        unassigned = max(sent - self._assigned.total(ahead), 0)
        mean_speed = sum([speed for _, speed in waits]) / len(waits)
        # Times are in proportion to tokens, also to those of all callers.
        return Forecast(_wait_s(waits, unassigned) * self._callers(), tokens / mean_speed)


class DeploymentQueues(defaultdict[str, DeploymentQueue]):
    """The queues of deployments, by name. Ray creates the routers, which know the replicas."""

    def __init__(self) -> None:
        """Creates an empty collection."""
        self.callers = 1  #: processes that send as much as this one
        super().__init__(lambda: DeploymentQueue(lambda: self.callers))

    def __reduce__(self) -> Any:
        # Ray pickles the class of a router by value, with the objects that its module refers to.
        return "DEPLOYMENT_QUEUES"


#: Of this process.
DEPLOYMENT_QUEUES = DeploymentQueues()


def _wait_s(waits: Sequence[tuple[float, float]], tokens: int) -> float:
    """Returns when a replica is free, if further tokens fill the shortest queues first.

    Args:
        waits: see `AssignedTokens.waits`.
        tokens: the further ones.
    """
    if not tokens:
        return min(waits)[0]
    level_s = filled_per_s = 0.0
    left = float(tokens)
    for wait_s, tokens_per_s in sorted(waits):
        needed = (wait_s - level_s) * filled_per_s
        if needed >= left and filled_per_s:
            break
        left -= needed
        level_s = wait_s
        filled_per_s += tokens_per_s
    return level_s + left / filled_per_s
