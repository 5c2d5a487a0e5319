"""What became of each request of a load."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np


class Kind(StrEnum):
    """How a request ended."""

    RIGHT = "right"  #: a reply with the vectors and the space of the reference
    REFUSED = "refused"  #: an error that tells the client what to do, in the format of its API
    FAILED = "failed"  #: another error, or a broken connection
    LOST = "lost"  #: no reply within the time limit
    WRONG = "wrong"  #: other vectors, or vectors of another space


class Outcome(NamedTuple):
    """How one request ended; times are those of one monotonic clock, in seconds."""

    request_id: str
    started_s: float
    ended_s: float
    kind: Kind
    detail: str = ""  #: what was wrong; empty for right replies
    attempts: int = 1  #: more than one: the client waited as `Retry-After` said, and sent it again

    @property
    def latency_s(self) -> float:
        """Seconds from the first attempt to the last reply."""
        return self.ended_s - self.started_s


class Figures(NamedTuple):
    """The requests of a period."""

    sent: int
    right: int
    refused: int
    failed: int
    lost: int
    wrong: int
    repeated: int  #: requests with more than one attempt
    p50_ms: float  #: of right replies, like those below; 0 if there are none
    p99_ms: float
    worst_ms: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Figures":
        """Counts outcomes."""
        kinds = Counter(outcome.kind for outcome in outcomes)
        right_ms = [o.latency_s * 1000 for o in outcomes if o.kind is Kind.RIGHT] or [0.0]
        p50_ms, p99_ms, worst_ms = np.percentile(right_ms, (50, 99, 100))
        return cls(
            sent=len(outcomes),
            repeated=sum(outcome.attempts > 1 for outcome in outcomes),
            p50_ms=round(float(p50_ms), 1),
            p99_ms=round(float(p99_ms), 1),
            worst_ms=round(float(worst_ms), 1),
            **{kind.value: kinds[kind] for kind in Kind},
        )


class Ledger:
    """Records every request once when it is sent, and once when it ends."""

    def __init__(self) -> None:
        self._open: dict[str, float] = {}
        self._outcomes: dict[str, Outcome] = {}

    def open(self, request_id: str, started_s: float) -> None:
        """Records that a request is sent.

        Raises:
            ValueError: a request with this id was sent before.
        """
        if request_id in self._open or request_id in self._outcomes:
            raise ValueError(f"The request {request_id} was sent before.")
        self._open[request_id] = started_s

    def close(
        self, request_id: str, ended_s: float, kind: Kind, detail: str = "", attempts: int = 1
    ) -> None:
        """Records how a request ended.

        Raises:
            KeyError: no request with this id is open.
        """
        started_s = self._open.pop(request_id)
        self._outcomes[request_id] = Outcome(request_id, started_s, ended_s, kind, detail, attempts)

    def give_up(self, now_s: float) -> None:
        """Counts the requests that are still open as lost."""
        for request_id in [*self._open]:
            self.close(request_id, now_s, Kind.LOST, "no reply when the load ended")

    @property
    def open_requests(self) -> Mapping[str, float]:
        """The start of each request that has not ended, by its id."""
        return {**self._open}

    @property
    def outcomes(self) -> list[Outcome]:
        """The requests that have ended, by the time of their end."""
        return [*self._outcomes.values()]

    def periods(self, injected_s: float, healed_s: float) -> dict[str, Figures]:
        """Returns the figures before, during and after a fault.

        A request that was in flight at any moment of the fault counts as `during`.
        """
        before, during, after = [], [], []
        for outcome in self.outcomes:
            if outcome.ended_s < injected_s:
                before.append(outcome)
            elif outcome.started_s >= healed_s:
                after.append(outcome)
            else:
                during.append(outcome)
        periods = {"before": before, "during": during, "after": after}
        return {name: Figures.of(outcomes) for name, outcomes in periods.items()}

    def recovered_at(
        self, healed_s: float, *, stable_s: float, min_requests: int, max_latency_s: float
    ) -> float | None:
        """Returns when the service had recovered from a fault; None if it has not.

        It has recovered at the start of the last request that wasn't right and fast, if enough
        requests that were have started since, for at least `stable_s`. Requests in flight aren't.

        Args:
            healed_s: end of the fault.
            stable_s: length of the period that shows the recovery.
            min_requests: least number of requests in it.
            max_latency_s: what is fast.
        """
        since_s, requests = healed_s, 0
        for started_s, is_good in sorted(self._started_since(healed_s, max_latency_s)):
            if not is_good:
                since_s, requests = started_s, 0
            elif requests >= min_requests and started_s - since_s >= stable_s:
                return since_s
            else:
                requests += 1
        return None

    def _started_since(self, moment_s: float, max_latency_s: float) -> Iterable[tuple[float, bool]]:
        """Yields the start of each request, and whether it was right and fast."""
        for outcome in self.outcomes:
            is_good = outcome.kind is Kind.RIGHT and outcome.latency_s <= max_latency_s
            if outcome.started_s >= moment_s:
                yield outcome.started_s, is_good
        for started_s in [*self._open.values()]:  # the thread of the load goes on
            if moment_s <= started_s:
                yield started_s, False

    def errors(self) -> dict[str, int]:
        """Returns how often each error occurred, most frequent first."""
        details = Counter(
            f"{o.kind}: {o.detail}" for o in self.outcomes if o.kind is not Kind.RIGHT
        )
        return dict(details.most_common())

    def timeline(self, start_s: float) -> list[dict[str, Any]]:
        """Returns the requests of each second since `start_s`, by the second of their start."""
        seconds: dict[int, list[Outcome]] = {}
        for outcome in self.outcomes:
            seconds.setdefault(int(outcome.started_s - start_s), []).append(outcome)
        return [
            {
                "second": second,
                "right": sum(o.kind is Kind.RIGHT for o in outcomes),
                "other": sum(o.kind is not Kind.RIGHT for o in outcomes),
                "worst_ms": round(max(o.latency_s for o in outcomes) * 1000, 1),
            }
            for second, outcomes in sorted(seconds.items())
        ]
