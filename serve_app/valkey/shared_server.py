"""Which server the replicas of a service share: one elsewhere, an embedded one, or none."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from serve_app.config import CacheConfig
from serve_app.config.secret import read_secret
from serve_app.valkey.client import Client, connect
from serve_app.valkey.embedded import EmbeddedUnavailable, Lease, default_cache_dir, lease_server

logger = logging.getLogger(__name__)

_MEND_EVERY_S = 20.0


class SharedServer:
    """The way to it, and the lease on it where it is embedded."""

    def __init__(self, config: CacheConfig, *, service: str, owner_pid: int) -> None:
        """Opens nothing yet.

        Args:
            config: what is asked for.
            service: which service this is, among those on this machine.
            owner_pid: the process whose end is the service's end.
        """
        self._config = config
        self._url = config.url.get_secret_value()
        self._lease: Lease | None = None
        base = default_cache_dir() if config.data_dir is None else Path(config.data_dir)
        self._take = partial(lease_server, base, service, owner_pid, config.max_bytes)
        self.kind = self._url.partition(":")[0]  #: as in `CacheState`

    @property
    def is_embedded(self) -> bool:
        """Whether the service starts it; then `connect` blocks."""
        return self._url == "embedded"

    def connect(self) -> Client | None:
        """A client that is not connected yet; None where no server is asked for.

        Raises:
            ConfigurationError: the URL can't be read, or the password isn't there.
            EmbeddedUnavailable: there is no embedded server to be had.
        """
        url = self._url
        if url == "none":
            return None
        if self.is_embedded:
            self._lease = self._take()
            url = f"unix://{self._lease.socket}"
        name = self._config.password_env
        password = None if name is None else read_secret(name, "cache.password_env")
        return connect(url, password, self._config.timeout_s)

    async def keep_alive(self, is_up: Callable[[], bool]) -> None:
        """Has an embedded server that was given up started again: a lease taken anew does that.

        Goes on for ever, unless the server is somebody else's.
        """
        while self._lease is not None:
            await asyncio.sleep(_MEND_EVERY_S)
            if is_up():
                continue
            try:
                lease = await asyncio.to_thread(self._take)
            except EmbeddedUnavailable as error:
                logger.warning("The embedded cache server is away: %s", error)
                continue
            self._lease.release()
            self._lease = lease

    def release(self) -> None:
        """Lets the server go; safe to call twice."""
        if self._lease is not None:
            self._lease.release()
