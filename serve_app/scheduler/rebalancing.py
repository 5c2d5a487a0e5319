"""Which calls that wait on busy replicas move to others, such as new ones."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.types import Lane

C = TypeVar("C", bound=Hashable)  #: what identifies a call
R = TypeVar("R", bound=Hashable)  #: what identifies a replica

#: A call moves if it starts at least this much sooner. So what a replica computes now stays there.
_MIN_GAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class SentCall(Generic[C, R]):
    """A call that a replica has not answered yet."""

    call: C
    replica: R
    lane: Lane
    tokens: int


def choose_moves(
    calls: Iterable[SentCall[C, R]], tokens_per_s: Mapping[R, float]
) -> list[tuple[SentCall[C, R], R]]:
    """Returns the calls that should move, in the order in which they were sent, and where to.

    Goes through the calls, the oldest first and interactive ones before bulk, and moves each that
    starts at least a second sooner at the end of another replica's queue. So a new replica gets old
    and late calls alike, and none waits for many that were sent later.

    Args:
        calls: in the order in which they were sent.
        tokens_per_s: speed of each replica, also of idle ones.
    """
    by_lane: dict[Lane, list[SentCall[C, R]]] = {"interactive": [], "bulk": []}
    for call in calls:
        by_lane[call.lane].append(call)
    moves = []
    ahead_s = dict.fromkeys(tokens_per_s, 0.0)  # of the call that is looked at
    queue_s = dict.fromkeys(tokens_per_s, 0.0)  # of all calls, interactive ones and then bulk
    for lane_calls in (by_lane["interactive"], by_lane["bulk"]):
        for call in lane_calls:
            queue_s[call.replica] += call.tokens / tokens_per_s[call.replica]
        for call in lane_calls:
            source, target = call.replica, min(queue_s, key=queue_s.__getitem__)
            if ahead_s[source] - queue_s[target] >= _MIN_GAIN_S:
                moves.append((call, target))
                queue_s[source] -= call.tokens / tokens_per_s[source]
                queue_s[target] += call.tokens / tokens_per_s[target]
            else:
                ahead_s[source] += call.tokens / tokens_per_s[source]
    return moves
