"""The loads of all callers of a replica, as their calls bring them along."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from serve_app.scheduler.caller_load import CallerLoad
from serve_app.scheduler.replica_load import ReplicaLoad

#: A caller that is silent for this long has ended, or calls other replicas.
_FORGET_AFTER_S = 10.0
#: Rates over a shorter time are noise.
_MIN_INTERVAL_S = 0.5


@dataclass(slots=True)
class _Caller:
    """The latest load of a caller, and the one that the rates start from."""

    load: CallerLoad
    received_s: float
    base: CallerLoad
    base_s: float
    interval_s: float = 0.0  # of the rates; 0: none yet
    interactive_per_s: float = 0.0
    bulk_per_s: float = 0.0

    def update_rates(self) -> None:
        """Computes the rates between `base` and the latest load, which is the next base."""
        interval_s = self.received_s - self.base_s
        if interval_s < _MIN_INTERVAL_S:
            return
        load, base = self.load, self.base
        arrived_interactive = load.arrived_interactive_tokens - base.arrived_interactive_tokens
        arrived_bulk = load.arrived_bulk_tokens - base.arrived_bulk_tokens
        self.interactive_per_s = arrived_interactive / interval_s
        self.bulk_per_s = arrived_bulk / interval_s
        self.interval_s, self.base, self.base_s = interval_s, load, self.received_s

    def share(self, now_s: float) -> float:
        """Returns how much of the rates is left: they fall while no call comes."""
        return min(1.0, self.interval_s / max(now_s - self.base_s, 1e-9))


class CallerLoads:
    """Keeps the latest load of each caller, and adds them up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates an empty collection; `clock` returns monotonic time in seconds."""
        self._clock = clock
        self._callers: dict[str, _Caller] = {}

    def record(self, load: CallerLoad) -> None:
        """Takes the load of a caller.

        Calls overtake each other, so a load whose counters are below the latest ones is ignored. A
        caller that counts from 0 again counts as a new one once its previous loads are forgotten.
        """
        now_s = self._clock()
        caller = self._callers.get(load.caller)
        if caller is None or now_s - caller.received_s > _FORGET_AFTER_S:
            self._forget(now_s)
            self._callers[load.caller] = _Caller(load, now_s, load, now_s)
        elif (
            load.arrived_interactive_tokens >= caller.load.arrived_interactive_tokens
            and load.arrived_bulk_tokens >= caller.load.arrived_bulk_tokens
        ):
            caller.load, caller.received_s = load, now_s

    def add_to(self, report: ReplicaLoad) -> ReplicaLoad:
        """Returns a report with the sums over the callers.

        Each rate covers the time between two loads of its caller that are at least 0.5 s apart.
        """
        now_s = self._clock()
        self._forget(now_s)
        callers = [*self._callers.values()]
        for caller in callers:
            caller.update_rates()
        return replace(
            report,
            held_interactive_tokens=sum(c.load.held_interactive_tokens for c in callers),
            held_bulk_tokens=sum(c.load.held_bulk_tokens for c in callers),
            oldest_held_s=max((c.load.oldest_held_s for c in callers), default=0.0),
            arrived_interactive_tokens_per_s=sum(
                c.interactive_per_s * c.share(now_s) for c in callers
            ),
            arrived_bulk_tokens_per_s=sum(c.bulk_per_s * c.share(now_s) for c in callers),
        )

    def _forget(self, now_s: float) -> None:
        for name, caller in [*self._callers.items()]:
            if now_s - caller.received_s > _FORGET_AFTER_S:
                del self._callers[name]
