"""When a request is tried again: one flow that the sync and the async client both drive.

`exchange` is a generator that says what to do next and is told what came of it; whoever drives it
does the waiting and the sending, so that there is one set of rules and neither sockets nor an event
loop in it. Waits grow exponentially with full jitter (Brooker, 2015, "Exponential Backoff And
Jitter"), so that clients that failed together don't come back together.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count

from embedserve_client.errors import EmbedError, NetworkError, Overloaded, ServerError, Timeout
from embedserve_client.wire import Reply, Request, refusal

_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and how soon."""

    attempts: int = 5  #: after the first
    first_wait_s: float = 0.25  #: the most before the second try; doubled for each further one
    most_wait_s: float = 8.0
    waits: bool = True  #: False: tries again at once; for tests


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request; what comes of it is wanted within `timeout_s`."""

    request: Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait."""

    seconds: float


Exchange = Generator[Send | Wait, Reply | EmbedError | None, Reply]


def exchange(request: Request, retry: Retry, end: float, now: Callable[[], float]) -> Exchange:
    """One request, with its retries, up to the moment `end` on the clock `now`.

    It wants a `Reply`, or the error in its place, for each `Send`, and None for each `Wait`.
    Network errors, 429 and 5xx are tried again; another 4xx would only fail again.

    Returns:
        A reply that is no error.

    Raises:
        EmbedError: the last try's error; at once where the next try would come too late.
        Timeout: the time ran out.
    """
    for attempt in count():
        left_s = end - now()
        if left_s <= 0:
            raise Timeout("The call's time ran out.")
        answer = yield Send(request, left_s)
        assert answer is not None, "Each Send is answered. This is a bug."
        error = refusal(answer) if isinstance(answer, Reply) else answer
        if error is None:
            assert isinstance(answer, Reply)
            return answer
        wait_s = _wait_s(error, attempt, retry)
        if wait_s is None or now() + wait_s >= end:
            raise error
        if wait_s > 0:
            yield Wait(wait_s)
    raise AssertionError("It counts without end. This is a bug.")


def _wait_s(error: EmbedError, attempt: int, retry: Retry) -> float | None:
    """Seconds before the next try; None: there is none."""
    if attempt >= retry.attempts or not isinstance(error, NetworkError | Overloaded | ServerError):
        return None
    if not retry.waits:
        return 0.0
    jitter_s = random.uniform(
        0, min(retry.most_wait_s, retry.first_wait_s * 2 ** min(attempt, _MOST_DOUBLINGS))
    )
    at_least_s = error.retry_after_s if isinstance(error, Overloaded) else None
    return jitter_s + (at_least_s or 0.0)
