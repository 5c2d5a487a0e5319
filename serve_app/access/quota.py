"""Quotas: token buckets for the limits of each API key, counted in this process.

A bucket's capacity is one minute of its limit, and it refills evenly. A request is charged with an
estimate when it is admitted, and the charge is corrected when it is done. The correction may
overdraw the bucket; then no request passes until it has refilled above zero. A request larger than
the bucket passes when the bucket is full, and overdraws it. So every request passes eventually, and
none exceeds the rate.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serve_app.config import ApiKey
from serve_app.errors import QuotaExceeded

#: Tolerance for rounding errors, so that a client that retries exactly on time is admitted.
_EPSILON = 1e-6
#: Retry delay of a request that exceeds `concurrent_tokens`: when others end is unknown.
_CONCURRENCY_RETRY_S = 1.0


class BucketLevel(NamedTuple):
    """The fill level of a bucket."""

    limit: int  #: per minute; the bucket's capacity
    remaining: float  #: negative if overdrawn

    def headers(self, name: str) -> dict[str, str]:
        """Returns OpenAI's rate limit headers for a limit called `name`."""
        reset_s = max(0.0, self.limit - self.remaining) * 60 / self.limit
        return {
            f"x-ratelimit-limit-{name}": str(self.limit),
            f"x-ratelimit-remaining-{name}": str(max(0, math.floor(self.remaining + _EPSILON))),
            f"x-ratelimit-reset-{name}": format_duration(reset_s),
        }


class QuotaStatus(NamedTuple):
    """The levels of a key's buckets; None for limits that it doesn't have."""

    requests: BucketLevel | None = None
    tokens: BucketLevel | None = None

    def headers(self) -> Mapping[str, str]:
        """Returns OpenAI's rate limit headers for the limits that the key has."""
        requests = {} if self.requests is None else self.requests.headers("requests")
        tokens = {} if self.tokens is None else self.tokens.headers("tokens")
        return {**requests, **tokens}


_NO_LIMITS = QuotaStatus()


@dataclass(frozen=True, slots=True)
class Reservation:
    """The charge of an admitted request."""

    key: ApiKey
    tokens: int  #: the estimate that was charged
    model: str = ""  #: a key has a quota for each model
    status: QuotaStatus = _NO_LIMITS  #: after the charge
    entry: str | None = None  #: identifies it on a shared server; None: counted in this process

    def headers(self) -> Mapping[str, str]:
        """Returns the rate limit headers of the response."""
        return self.status.headers()


class QuotaStore(Protocol):
    """Counts what each key uses of each model."""

    def open(self) -> None:
        """Prepares for keys with limits. Idempotent; call it in the event loop.

        Raises:
            ConfigurationError: the store is misconfigured.
        """
        ...

    async def reserve(self, key: ApiKey, tokens: int, model: str = "") -> Reservation:
        """Charges a key for one request of an estimated number of tokens, all or nothing.

        Args:
            key: its limits hold for each model.
            tokens: the estimate.
            model: name of the model.

        Raises:
            QuotaExceeded: the request exceeds one of the key's limits now.
        """
        ...

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """Replaces the estimate by the number of tokens used; None: the request failed, so none.

        Call it exactly once for each reservation. Never raises, and never waits for a server.
        """
        ...

    async def close(self) -> None:
        """Releases all resources. Never raises."""
        ...


class Bucket:
    """A token bucket that starts full. Each call passes the current limit."""

    def __init__(self) -> None:
        self._remaining = math.inf
        self._updated_at_s = 0.0

    def level(self, limit: int, now_s: float) -> BucketLevel:
        """Refills the bucket until `now_s`, which never decreases, and returns its level."""
        refill = (now_s - self._updated_at_s) * limit / 60
        self._remaining = min(limit, self._remaining + refill)
        self._updated_at_s = now_s
        return BucketLevel(limit, self._remaining)

    def charge(self, amount: float) -> None:
        """Removes an amount; a negative amount is a refund."""
        self._remaining -= amount


@dataclass(frozen=True, slots=True)
class RetryDelays:
    """Seconds until a request passes each of its key's limits; 0: it passes now."""

    requests_s: float
    tokens_s: float
    concurrent_s: float

    @classmethod
    def of(
        cls, key: ApiKey, tokens: int, status: QuotaStatus, in_flight_tokens: float
    ) -> "RetryDelays":
        """Returns the delays of a request, given the key's other requests in flight."""
        limit = key.concurrent_tokens
        passes = limit is None or in_flight_tokens == 0 or in_flight_tokens + tokens <= limit
        return cls(
            _delay_s(status.requests, 1),
            _delay_s(status.tokens, tokens),
            0.0 if passes else _CONCURRENCY_RETRY_S,
        )

    @property
    def longest_s(self) -> float:
        """Seconds until the request passes all limits."""
        return max(self.requests_s, self.tokens_s, self.concurrent_s)

    def error(self, key: ApiKey, tokens: int, status: QuotaStatus) -> QuotaExceeded:
        """Returns the error that names the limit with the longest delay."""
        if self.longest_s == self.requests_s:
            reason = f"is limited to {key.requests_per_minute} requests a minute"
        elif self.longest_s == self.tokens_s:
            reason = (
                f"is limited to {key.tokens_per_minute} tokens a minute, and this request has "
                f"about {tokens}"
            )
        else:
            reason = (
                f"is limited to {key.concurrent_tokens} tokens in flight, and this request has "
                f"about {tokens}"
            )
        retry_after_s = max(1, math.ceil(self.longest_s - _EPSILON))
        return QuotaExceeded(
            f"The API key {key.name!r} {reason}. Try again in {retry_after_s} s.",
            retry_after_s,
            status.headers(),
        )


def _delay_s(level: BucketLevel | None, amount: int) -> float:
    if level is None:
        return 0.0
    missing = min(amount, level.limit) - level.remaining
    return missing * 60 / level.limit if missing > _EPSILON else 0.0


class _KeyUsage:
    """What one key has used of one model."""

    def __init__(self) -> None:
        self.requests = Bucket()
        self.tokens = Bucket()
        self.in_flight_tokens = 0

    def status(self, key: ApiKey, now_s: float) -> QuotaStatus:
        """Refills the buckets until `now_s` and returns their levels."""
        requests, tokens = key.requests_per_minute, key.tokens_per_minute
        return QuotaStatus(
            None if requests is None else self.requests.level(requests, now_s),
            None if tokens is None else self.tokens.level(tokens, now_s),
        )


class MemoryQuotaStore:
    """Counts in this process only. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._usage = defaultdict[tuple[str, str], _KeyUsage](_KeyUsage)

    def open(self) -> None:
        """See `QuotaStore`."""

    async def reserve(self, key: ApiKey, tokens: int, model: str = "") -> Reservation:
        """See `QuotaStore`."""
        usage, now_s = self._usage[key.name, model], self._clock()
        before = usage.status(key, now_s)
        delays = RetryDelays.of(key, tokens, before, usage.in_flight_tokens)
        if delays.longest_s > 0:
            raise delays.error(key, tokens, before)
        usage.requests.charge(1)
        usage.tokens.charge(tokens)
        usage.in_flight_tokens += tokens
        return Reservation(key, tokens, model, usage.status(key, now_s))

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """See `QuotaStore`."""
        usage = self._usage[reservation.key.name, reservation.model]
        usage.status(reservation.key, self._clock())  # refill, up to the limit, first
        usage.tokens.charge((tokens or 0) - reservation.tokens)
        usage.in_flight_tokens -= reservation.tokens

    async def close(self) -> None:
        """See `QuotaStore`."""


def format_duration(seconds: float) -> str:
    """Formats a duration like OpenAI and Go, rounded up: `120ms`, `1s`, `6m0s`."""
    if seconds <= 0:
        return "0s"
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, seconds = divmod(math.ceil(seconds - _EPSILON), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
