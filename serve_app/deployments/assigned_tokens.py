"""The tokens that a caller has sent to each replica of a deployment, until their calls end."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.scheduler.rebalancing import SentCall, choose_moves
from serve_app.types import LANES, Lane

R = TypeVar("R", bound=Hashable)  #: what identifies a replica

#: A call that hasn't ended after this time has been lost on its way.
_FORGET_AFTER_S = 900.0
#: An interactive text waits for the batch that runs, which takes about this long, but not for
#: further bulk texts.
_BATCH_S = 0.1
#: A replica that could not be reached is the last choice for this long. Ray takes a minute to
#: declare a machine dead that has lost power, and a call to it fails after ten seconds.
_AVOID_S = 15.0


@dataclass(frozen=True, slots=True)
class _Call(Generic[R]):
    replica: R
    lane: Lane
    tokens: int
    sent_s: float


class AssignedTokens(Generic[R]):
    """Ranks replicas by how long a call would wait for what this caller has sent to them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an empty collection; `clock` returns monotonic time in seconds."""
        self._clock = clock
        self._calls: dict[str, _Call[R]] = {}  # by ascending time
        self._tokens: dict[R, dict[Lane, int]] = {}
        self._avoided: dict[R, float] = {}  # until when
        self._turn = 0

    def rank(self, speeds: Mapping[R, float], lane: Lane) -> list[R]:
        """Returns the replicas by ascending waiting time; equal ones take turns.

        Those that could not be reached come last.

        Args:
            speeds: tokens per second of each replica; 0: unknown, taken to be the mean.
            lane: of the call.
        """
        self._forget_lost_calls()
        default = _mean_speed(speeds)
        self._turn = (self._turn + 1) % max(len(speeds), 1)
        replicas = [*speeds]
        replicas = [*replicas[self._turn :], *replicas[: self._turn]]
        now_s = self._clock()
        return sorted(
            replicas,
            key=lambda r: (
                self._avoided.get(r, now_s) > now_s,
                self._wait_s(r, speeds[r] or default, lane),
            ),
        )

    def choose_moves(self, speeds: Mapping[R, float]) -> list[str]:
        """Returns the calls that start sooner on other replicas: see `rebalancing.choose_moves`.

        Replicas that could not be reached neither give nor get any. While no speed is known, nobody
        knows how long a call waits, and none moves.

        Args:
            speeds: tokens per second of each replica; 0: unknown, taken to be the mean.
        """
        self._forget_lost_calls()
        reachable = self._reachable(speeds)
        calls = (
            SentCall(id_, call.replica, call.lane, call.tokens)
            for id_, call in self._calls.items()
            if call.replica in reachable
        )
        return [call.call for call, _ in choose_moves(calls, reachable)]

    def waits(self, speeds: Mapping[R, float], lane: Lane) -> list[tuple[float, float]]:
        """Returns for each replica that can be reached how long a call waits, and the speed.

        In seconds, and in tokens per second. Interactive calls precede bulk texts, so these don't
        count for them. Empty if no speed is known.

        Args:
            speeds: tokens per second of each replica; 0: unknown, taken to be the mean.
            lane: of the call.
        """
        lanes, waits = ahead_of(lane), []
        for replica, speed in self._reachable(speeds).items():
            tokens = self._tokens.get(replica)
            waits.append((sum([tokens[n] for n in lanes]) / speed if tokens else 0.0, speed))
        return waits

    def total(self, lanes: Iterable[Lane]) -> int:
        """Returns the tokens of lanes that have been sent to replicas."""
        by_lane = [*self._tokens.values()]  # a router may run in another thread
        return sum(tokens[lane] for lane in lanes for tokens in by_lane)

    def avoid(self, replica: R) -> None:
        """Makes a replica the last choice for a while: it could not be reached."""
        self._avoided[replica] = self._clock() + _AVOID_S

    def assign(self, call: str, replica: R, lane: Lane, tokens: int) -> None:
        """Counts a call for a replica, in place of an earlier assignment of the same call."""
        self.release(call)
        self._calls[call] = _Call(replica, lane, tokens, self._clock())
        by_lane = self._tokens.setdefault(replica, {"interactive": 0, "bulk": 0})
        by_lane[lane] += tokens

    def move(self, call: str, replica: R) -> None:
        """Counts a call for another replica than it was assigned to. Unknown calls are ignored."""
        assigned = self._calls.get(call)
        if assigned is not None and assigned.replica != replica:
            self.assign(call, replica, assigned.lane, assigned.tokens)

    def release(self, call: str, replica: R | None = None) -> None:
        """Ends a call. Unknown calls are ignored.

        Args:
            call: the call.
            replica: ignore the end if the call is assigned to another replica: an earlier attempt
                has ended, whose successor is in flight. None: end it wherever it is.
        """
        ended = self._calls.get(call)
        if ended is None or replica not in (None, ended.replica):
            return
        del self._calls[call]
        if ended.replica in self._tokens:
            self._tokens[ended.replica][ended.lane] -= ended.tokens

    def keep(self, replicas: Iterable[R]) -> None:
        """Forgets all other replicas."""
        kept = {*replicas}
        self._avoided = {r: until_s for r, until_s in self._avoided.items() if r in kept}
        self._tokens = {r: tokens for r, tokens in self._tokens.items() if r in kept}
        self._calls = {c: call for c, call in self._calls.items() if call.replica in kept}

    def _wait_s(self, replica: R, tokens_per_s: float, lane: Lane) -> float:
        tokens = self._tokens.get(replica)
        if tokens is None:
            return 0.0
        bulk_s = tokens["bulk"] / tokens_per_s
        ahead_s = bulk_s if lane == "bulk" else min(bulk_s, _BATCH_S)
        return tokens["interactive"] / tokens_per_s + ahead_s

    def _reachable(self, speeds: Mapping[R, float]) -> dict[R, float]:
        """Returns the speeds of the replicas that can be reached; empty if none is known."""
        if not any(speeds.values()):
            return {}
        default, now_s = _mean_speed(speeds), self._clock()
        return {
            replica: speed or default
            for replica, speed in speeds.items()
            if self._avoided.get(replica, now_s) <= now_s
        }

    def _forget_lost_calls(self) -> None:
        before_s = self._clock() - _FORGET_AFTER_S
        while self._calls:
            call = next(iter(self._calls))
            if self._calls[call].sent_s > before_s:
                return
            self.release(call)


def ahead_of(lane: Lane) -> tuple[Lane, ...]:
    """Returns the lanes whose texts a text of a lane waits for."""
    return ("interactive",) if lane == "interactive" else LANES


def _mean_speed(speeds: Mapping[R, float]) -> float:
    known = [speed for speed in speeds.values() if speed > 0]
    return sum(known) / len(known) if known else 1.0
