"""The entrance: who asks, whether they may, and what it takes from their quota."""

import asyncio
import contextlib
import contextvars
import ipaddress

from serve_app.access.keys import KeyRing
from serve_app.access.quota import QuotaStore, Reservation
from serve_app.config import AccessSettings, ApiKey
from serve_app.errors import ConfigurationError, Forbidden, QuotaExceeded, Unauthorized
from serve_app.metrics import KEY_REQUESTS, KEY_TOKENS, Meter


class Entrance:
    """Lets requests in, by their keys. For one event loop.

    A request is identified, enters, and leaves; whoever let it enter sees that it leaves, once,
    however it ends.
    """

    def __init__(self, ledger: QuotaStore, meter: Meter | None = None) -> None:
        self._ledger = ledger
        self._meter = meter or Meter()
        self._ring = KeyRing()
        self._watching: asyncio.Task[None] | None = None

    def apply(self, settings: AccessSettings) -> None:
        """Takes new settings; call it in the event loop. Requests that are in stay in.

        Raises:
            ConfigurationError: the keys can't be used, or their quotas can't be counted.
        """
        self._ring.apply(settings)
        if self._ring.is_limited:
            self._ledger.open()
        if self._watching is None and settings.keys_file is not None:
            self._watching = asyncio.get_running_loop().create_task(
                self._ring.watch(), context=contextvars.Context()
            )

    async def close(self) -> None:
        """Ends what runs beside requests. Never raises."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._ledger.close()

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return self._ring.required

    def identify(self, authorization: str | None, x_api_key: str | None) -> ApiKey | None:
        """Whose request it is; None where no key is required.

        Args:
            authorization: the header `Authorization`; only the scheme `Bearer` counts, and it goes
                before the other.
            x_api_key: the header `x-api-key`.

        Raises:
            Unauthorized: a key is required, and none or an unknown one came along.
        """
        if not self._ring.required:
            return None
        scheme, _, bearer = (authorization or "").strip().partition(" ")
        presented = (bearer if scheme.lower() == "bearer" else "").strip()
        presented = presented or (x_api_key or "").strip()
        if not presented:
            raise Unauthorized(
                "This service needs an API key. Send it in the header `Authorization: Bearer "
                "<key>` or `x-api-key: <key>`."
            )
        key = self._ring.find(presented)
        if key is None:
            raise Unauthorized(
                "This service doesn't know the API key. Check that it is complete, or ask whoever "
                "runs the service for one."
            )
        return key

    async def admit(self, key: ApiKey, model: str, estimated_tokens: int) -> Reservation:
        """Lets a request in, and takes it from the key's quota.

        Args:
            key: whose request it is.
            model: the served model's own name, no alias.
            estimated_tokens: of all its texts; `release` puts it right.

        Raises:
            Forbidden: the key may not use the model.
            QuotaExceeded: the request is more than the key may ask for now.
        """
        try:
            if key.models is not None and model not in key.models:
                raise Forbidden(
                    f"The API key {key.name!r} may not use the model {model!r}.", "model"
                )
            if key.is_limited:
                reservation = await self._ledger.reserve(key, estimated_tokens)
            else:
                reservation = Reservation(key, estimated_tokens)
        except (Forbidden, QuotaExceeded) as error:
            self._meter.add(KEY_REQUESTS, 1, key.name, error.code)
            raise
        self._meter.add(KEY_REQUESTS, 1, key.name, "admitted")
        return reservation

    async def release(self, reservation: Reservation, tokens: int | None) -> None:
        """Settles a request that was let in. Never raises, never waits for a server.

        Args:
            ticket: what `admit` gave.
            tokens: that were really used; None: it failed, and only the request itself counts.
        """
        self._meter.add(KEY_TOKENS, tokens or 0, reservation.key.name)
        if reservation.key.is_limited:
            await self._ledger.commit(reservation, tokens)


def require_keys_beyond_loopback(host: str | None, settings: AccessSettings) -> None:
    """Whether to serve at all: without any key, only this machine is let in.

    Args:
        host: what HTTP listens on; None: there is no HTTP.
        settings: of the entrance.

    Raises:
        ConfigurationError: others would be let in without a key.
    """
    if settings.required or settings.allow_unauthenticated or host is None or _is_loopback(host):
        return
    raise ConfigurationError(
        f"`http_options.host` is {host}, which lets other machines in, and no API key is "
        "configured. Make a key with `embedserve key new` and list it under `access` in the "
        "Ingress' user_config, or set `host: 127.0.0.1`, or, where everybody who reaches this "
        "machine may use the service, set `access.allow_unauthenticated: true`."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name, which may mean any address
