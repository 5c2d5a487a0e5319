"""Quotas: how much each key may still ask for. Token buckets, counted in one process or in all.

A bucket holds a minute's worth and fills evenly. At the entrance it is charged with an estimate,
which is put right when the request is done; that may overdraw it, and then nothing passes until
the debt is gone. A request of more than a minute's worth passes when the bucket is full, and
overdraws it as well: so all pass some day, and none faster than the rate.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serve_app.config import ApiKey
from serve_app.errors import QuotaExceeded

#: Rounding must not keep out what comes exactly when it was told to.
_ROUNDING = 1e-6
#: After which a request may fit again that has to wait for others of its key to end.
_ROOM_S = 1.0


class BucketLevel(NamedTuple):
    """How a bucket stands."""

    limit: int
    left: float  #: negative: overdrawn

    def headers(self, name: str) -> dict[str, str]:
        """As OpenAI tells it."""
        reset_s = max(0.0, self.limit - self.left) * 60 / self.limit
        return {
            f"x-ratelimit-limit-{name}": str(self.limit),
            f"x-ratelimit-remaining-{name}": str(max(0, math.floor(self.left + _ROUNDING))),
            f"x-ratelimit-reset-{name}": duration(reset_s),
        }


class QuotaStatus(NamedTuple):
    """How a key stands; None: it has no such limit."""

    requests: BucketLevel | None = None
    tokens: BucketLevel | None = None

    def headers(self) -> Mapping[str, str]:
        """For the reply, in OpenAI's words."""
        requests = {} if self.requests is None else self.requests.headers("requests")
        tokens = {} if self.tokens is None else self.tokens.headers("tokens")
        return {**requests, **tokens}


_NO_LIMITS = QuotaStatus()


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request that was let in."""

    key: ApiKey
    tokens: int  #: that were charged
    status: QuotaStatus = _NO_LIMITS  #: when it was let in
    entry: str | None = None  #: what a shared server calls it; None: no server knows of it

    def headers(self) -> Mapping[str, str]:
        """For the reply, in OpenAI's words; nothing where the key has no such limit."""
        return self.status.headers()


class QuotaStore(Protocol):
    """Counts what each key uses."""

    def open(self) -> None:
        """Makes ready, as some key has a limit; call it in the event loop, as often as you like.

        Raises:
            ConfigurationError: it can't, as it is configured.
        """
        ...

    async def reserve(self, key: ApiKey, tokens: int) -> Reservation:
        """Charges a key for one request of about so many tokens, wholly or not at all.

        Raises:
            QuotaExceeded: it doesn't fit now.
        """
        ...

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """Puts the charge right, once the request is done; None: it failed, tokens come back.

        Call it exactly once for each ticket. Never raises, never waits for a server.
        """
        ...

    async def close(self) -> None:
        """Lets go what it holds. Never raises."""
        ...


class Bucket:
    """One limit by the minute, full at first. The limit itself comes with each call."""

    def __init__(self) -> None:
        self._left = math.inf
        self._at = 0.0

    def level(self, limit: int, now_s: float) -> BucketLevel:
        """How it stands at a time that doesn't run backwards."""
        self._left = min(limit, self._left + (now_s - self._at) * limit / 60)
        self._at = now_s
        return BucketLevel(limit, self._left)

    def charge(self, amount: float) -> None:
        """Takes out, or with a negative amount puts back."""
        self._left -= amount


@dataclass(frozen=True, slots=True)
class RetryDelays:
    """How long until a request fits, by each of its key's limits, in seconds; 0: it does now."""

    requests_s: float
    tokens_s: float
    concurrent_s: float

    @classmethod
    def of(cls, key: ApiKey, tokens: int, status: QuotaStatus, held: float) -> "RetryDelays":
        """Of a request of so many tokens, while the key holds others in work."""
        limit = key.concurrent_tokens
        is_room = limit is None or held == 0 or held + tokens <= limit
        return cls(
            _wait_s(status.requests, 1),
            _wait_s(status.tokens, tokens),
            0.0 if is_room else _ROOM_S,
        )

    @property
    def longest_s(self) -> float:
        """Until it fits by all of them."""
        return max(self.requests_s, self.tokens_s, self.concurrent_s)

    def refusal(self, key: ApiKey, tokens: int, status: QuotaStatus) -> QuotaExceeded:
        """The error that tells of the longest."""
        if self.longest_s == self.requests_s:
            why = f"is limited to {key.requests_per_minute} requests a minute"
        elif self.longest_s == self.tokens_s:
            why = (
                f"is limited to {key.tokens_per_minute} tokens a minute, and this request has "
                f"about {tokens}"
            )
        else:
            why = (
                f"may have {key.concurrent_tokens} tokens in work at once, and this request has "
                f"about {tokens}"
            )
        retry_after_s = max(1, math.ceil(self.longest_s - _ROUNDING))
        return QuotaExceeded(
            f"The API key {key.name!r} {why}. Try again in {retry_after_s} s.",
            retry_after_s,
            status.headers(),
        )


def _wait_s(level: BucketLevel | None, amount: int) -> float:
    if level is None:
        return 0.0
    short = min(amount, level.limit) - level.left
    return short * 60 / level.limit if short > _ROUNDING else 0.0


class _Account:
    """What one key has used."""

    def __init__(self) -> None:
        self.requests = Bucket()
        self.tokens = Bucket()
        self.held = 0  #: tokens in work

    def status(self, key: ApiKey, now_s: float) -> QuotaStatus:
        """How the key stands, its buckets filled for the time until now."""
        requests, tokens = key.requests_per_minute, key.tokens_per_minute
        return QuotaStatus(
            None if requests is None else self.requests.level(requests, now_s),
            None if tokens is None else self.tokens.level(tokens, now_s),
        )


class MemoryQuotaStore:
    """Counts in this process alone. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts = defaultdict[str, _Account](_Account)

    def open(self) -> None:
        """See `QuotaStore`."""

    async def reserve(self, key: ApiKey, tokens: int) -> Reservation:
        """See `QuotaStore`."""
        account, now_s = self._accounts[key.name], self._clock()
        before = account.status(key, now_s)
        waits = RetryDelays.of(key, tokens, before, account.held)
        if waits.longest_s > 0:
            raise waits.refusal(key, tokens, before)
        account.requests.charge(1)
        account.tokens.charge(tokens)
        account.held += tokens
        return Reservation(key, tokens, account.status(key, now_s))

    async def commit(self, reservation: Reservation, tokens: int | None) -> None:
        """See `QuotaStore`."""
        account = self._accounts[reservation.key.name]
        account.status(
            reservation.key, self._clock()
        )  # which fills the buckets for the time until now
        account.tokens.charge((tokens or 0) - reservation.tokens)
        account.held -= reservation.tokens

    async def close(self) -> None:
        """See `QuotaStore`."""


def duration(seconds: float) -> str:
    """As OpenAI and Go write it: `120ms`, `1s`, `6m0s`; rounded up."""
    if seconds <= 0:
        return "0s"
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds - _ROUNDING), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
