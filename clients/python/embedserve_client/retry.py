"""Retries: one sans-I/O flow that the sync and the async client both drive.

`send_with_retries` is a generator. It yields the next step (`Send` or `Sleep`) and receives the
outcome, so the retry rules exist once, without sockets or an event loop. Delays grow exponentially
with full jitter (Brooker, 2015, "Exponential Backoff And Jitter"), so clients that failed together
don't retry together.
"""

import logging
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count

from embedserve_client.errors import (
    EmbedError,
    HTTPError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from embedserve_client.wire import Request, Response, status_error

logger = logging.getLogger(__name__)

#: Keeps `2**attempt` within the range of a float.
_MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number of retries and the delays between them."""

    max_retries: int = 5
    retry_delay_s: float = 0.25  #: upper bound of the first delay; doubles with each retry
    max_retry_delay_s: float = 8.0

    def delay_s(self, attempt: int, error: EmbedError) -> float:
        """Returns the seconds before retry number `attempt`, which counts from 0.

        `Retry-After` is added to the jittered delay, so clients don't return at the same moment.
        """
        bound_s = self.retry_delay_s * 2 ** min(attempt, _MAX_DOUBLINGS)
        retry_after_s = error.retry_after_s if isinstance(error, HTTPError) else None
        return random.uniform(0, min(self.max_retry_delay_s, bound_s)) + (retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send the request and wait up to `timeout_s` for the response."""

    request: Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Step: sleep."""

    seconds: float


def log_name(error: EmbedError) -> str:
    """Returns what a log may say about an error. Its message may quote a header or a text."""
    status = f", status {error.status}" if isinstance(error, HTTPError) else ""
    return f"{error.code}{status}"


RetryFlow = Generator[Send | Sleep, Response | EmbedError | None, Response]


def send_with_retries(
    request: Request, policy: RetryPolicy, deadline: float, clock: Callable[[], float]
) -> RetryFlow:
    """Sends a request until it succeeds, fails permanently, or the deadline on `clock` is reached.

    Network errors, 429 and 5xx are retried; other 4xx responses would only repeat. The driver sends
    a `Response` or an `EmbedError` for each `Send`, and None for each `Sleep`.

    Returns:
        The first successful response.

    Raises:
        EmbedError: the last error; raised at once if the next retry would miss the deadline.
        RequestTimeoutError: the deadline was reached.
    """
    for attempt in count():
        remaining_s = deadline - clock()
        if remaining_s <= 0:
            raise RequestTimeoutError("The request timed out.")
        outcome = yield Send(request, remaining_s)
        assert outcome is not None, "The driver sent no outcome for a Send. This is a bug."
        error = status_error(outcome) if isinstance(outcome, Response) else outcome
        if error is None:
            assert isinstance(outcome, Response)
            return outcome
        is_transient = isinstance(error, NetworkError | RateLimitError | ServerError)
        if not is_transient or attempt >= policy.max_retries:
            raise error
        delay_s = policy.delay_s(attempt, error)
        if clock() + delay_s >= deadline:
            raise error
        logger.info("Retry %d in %.2f s: %s", attempt + 1, delay_s, log_name(error))
        if delay_s > 0:
            yield Sleep(delay_s)
    raise AssertionError("`count` never ends. This is a bug.")
