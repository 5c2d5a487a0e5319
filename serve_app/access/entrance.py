"""Authenticates requests by API key and admits them within the key's permissions and quota.

headers → identify → `ApiKey` → admit → `Reservation` → … → release
"""

import asyncio
import contextlib
import contextvars
import ipaddress
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from serve_app.access.budget import BudgetStatus
from serve_app.access.keys import KeyRing
from serve_app.access.ledger import Ledger, MemoryLedger, Usage
from serve_app.access.quota import BucketLevel, QuotaStore, Reservation
from serve_app.config import AccessSettings, ApiKey
from serve_app.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthorized, UnknownKey
from serve_app.meter import Meter
from serve_app.metrics import COST_NANO_USD, KEY_REQUESTS, KEY_TOKENS, SAVED_NANO_USD
from serve_app.results import Result, TokenizerResult


class KeyLevel(NamedTuple):
    """How much of its token quota a key has left, of the model of which it has the least."""

    limit: int | None  #: tokens per minute; None: no limit
    remaining: float | None = None  #: None: no limit, or no request with the key has come
    age_s: float = math.inf  #: since the request that told; the quota's refill since is included


class Entrance:
    """Identifies, admits and releases requests. For one event loop.

    The caller of `admit` must call `release` exactly once, however the request ends.
    """

    def __init__(
        self,
        quotas: QuotaStore,
        meter: Meter | None = None,
        keys: KeyRing | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """An entrance that requires no keys until `apply`.

        Args:
            quotas: counts what each key uses; closed with the entrance.
            meter: counts requests and tokens by key.
            keys: the known keys; None: a key ring without any.
            ledger: adds up what requests cost; closed with the entrance. None: one in memory.
        """
        self._quotas = quotas
        self._meter = meter or Meter()
        self._keys = keys or KeyRing()
        self.ledger = ledger or MemoryLedger()
        self._watch_task: asyncio.Task[None] | None = None
        self._levels: dict[str, dict[str, tuple[float, BucketLevel]]] = {}

    def apply(self, settings: AccessSettings) -> None:
        """Applies new settings; call it in the event loop. Admitted requests are unaffected.

        Raises:
            ConfigurationError: the keys are invalid, or their quotas can't be counted.
        """
        self._keys.apply(settings)
        self.ledger.open()
        for name in self._keys.with_budget:
            self.ledger.month_nano_usd(name)  # so that its total is known at the first request
        if self._keys.is_limited:
            self._quotas.open()
        if self._watch_task is None and settings.keys_file is not None:
            self._watch_task = asyncio.get_running_loop().create_task(
                self._keys.watch(), context=contextvars.Context()
            )

    async def close(self) -> None:
        """Stops background tasks, closes the quota store and the ledger. Never raises."""
        if self._watch_task is not None:
            self._watch_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch_task
        await self._quotas.close()
        await self.ledger.close()

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._keys.required

    def identify(self, authorization: str | None, api_key: str | None) -> ApiKey | None:
        """Returns the key of a request; None if no key is required.

        Args:
            authorization: the header `Authorization`. A key in the scheme `Bearer` takes
                precedence; other schemes are ignored.
            api_key: the header `x-api-key`, or Azure's `api-key`.

        Raises:
            Unauthorized: a key is required, and it is missing or unknown.
        """
        if not self._keys.required:
            return None
        scheme, _, bearer = (authorization or "").strip().partition(" ")
        presented = (bearer if scheme.lower() == "bearer" else "").strip()
        presented = presented or (api_key or "").strip()
        if not presented:
            raise Unauthorized(
                "This service needs an API key. Send it in the header `Authorization: Bearer "
                "<key>` or `x-api-key: <key>`."
            )
        key = self._keys.find(presented)
        if key is None:
            raise UnknownKey(
                "This service doesn't know the API key. Check that it is complete, or ask the "
                "operator of the service for one."
            )
        return key

    def check_budget(self, key: ApiKey, model: str) -> None:
        """Checks that a key may use a model with a price.

        Args:
            key: returned by `identify`.
            model: the served model's name, not an alias.

        Raises:
            BudgetExceeded: the key has used up its budget for this month.
        """
        status = self._budget_status(key)
        if status is not None and status.is_used_up:
            error = status.error(key.name, datetime.now(UTC))
            self._meter.add(KEY_REQUESTS, 1, key.name, error.code, model)
            raise error

    def budget_headers(self, key: ApiKey) -> Mapping[str, str]:
        """Returns the response headers of a key with a budget; none for other keys."""
        status = self._budget_status(key)
        return {} if status is None else status.headers()

    def _budget_status(self, key: ApiKey) -> BudgetStatus | None:
        limit = key.budget_nano_usd
        return None if limit is None else BudgetStatus(limit, self.ledger.month_nano_usd(key.name))

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> Reservation:
        """Admits a request and charges its key.

        Args:
            key: returned by `identify`.
            model: the served model's name, not an alias.
            estimated_tokens: total of the request; `release` corrects the charge.

        Raises:
            Forbidden: the key may not use the model.
            QuotaExceeded: the request exceeds one of the key's limits now.
        """
        try:
            if key.models is not None and model not in key.models:
                raise Forbidden(
                    f"The API key {key.name!r} may not use the model {model!r}.", "model"
                )
            if key.is_limited:
                reservation = await self._quotas.reserve(key, estimated_tokens, model)
                if reservation.status.tokens is not None:
                    level = (time.monotonic(), reservation.status.tokens)
                    self._levels.setdefault(key.name, {})[model] = level
            else:
                reservation = Reservation(key, estimated_tokens, model)
        except (Forbidden, QuotaExceeded) as error:
            self._meter.add(KEY_REQUESTS, 1, key.name, error.code, model)
            raise
        self._meter.add(KEY_REQUESTS, 1, key.name, "admitted", model)
        return reservation

    def key_levels(self) -> Mapping[str, KeyLevel]:
        """Returns the quota of each known key, as of its latest request to this process."""
        now_s = time.monotonic()
        return {key.name: self._key_level(key, now_s) for key in self._keys.known}

    def _key_level(self, key: ApiKey, now_s: float) -> KeyLevel:
        limit = key.tokens_per_minute
        levels = self._levels.get(key.name)
        if limit is None or not levels:
            return KeyLevel(limit)
        remaining, age_s = min(
            (min(limit, level.remaining + (now_s - known_s) * limit / 60), now_s - known_s)
            for known_s, level in levels.values()
        )
        return KeyLevel(limit, remaining, age_s)

    async def release(self, reservation: Reservation, tokens: int | None) -> None:
        """Ends an admitted request. Never raises, and never waits for a server.

        Args:
            reservation: returned by `admit`.
            tokens: number of tokens used; None: the request failed and is charged no tokens.
        """
        self._meter.add(KEY_TOKENS, tokens or 0, reservation.key.name, reservation.model)
        if reservation.key.is_limited:
            await self._quotas.commit(reservation, tokens)

    def charge(self, key: ApiKey | None, result: Result) -> None:
        """Charges a key for a request that succeeded. Never raises, and never waits for a server.

        Args:
            key: returned by `identify`.
            result: of the request's job; free models cost nothing and aren't charged.
        """
        if isinstance(result, TokenizerResult) or result.cost is None:
            return
        name = "" if key is None else key.name
        self._meter.add(COST_NANO_USD, result.cost.nano_usd, name, result.model)
        self._meter.add(SAVED_NANO_USD, result.cost.saved_nano_usd, name, result.model)
        self.ledger.add(result.model, name, Usage.of_request(result, result.cost))


def require_keys_beyond_loopback(host: str | None, settings: AccessSettings) -> None:
    """Refuses to serve other machines without API keys, unless the settings allow it.

    Args:
        host: address that HTTP listens on; None: there is no HTTP.
        settings: of the entrance.

    Raises:
        ConfigurationError: other machines could use the service without a key.
    """
    if settings.required or settings.allow_unauthenticated or host is None or is_loopback(host):
        return
    raise ConfigurationError(
        f"`http_options.host` is {host}, which admits other machines, and no API key is "
        "configured. Create a key with `embedserve key new` and list it under `access` in the "
        "Ingress' user_config; or set `host: 127.0.0.1`; or, if every client that can reach this "
        "machine may use the service, set `access.allow_unauthenticated: true`."
    )


def is_loopback(host: str) -> bool:
    """Returns whether only programs on the same machine reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name, which may resolve to any address
