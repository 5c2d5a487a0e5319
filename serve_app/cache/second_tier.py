"""The tier that replicas share: a server elsewhere, an embedded one, or none."""

import asyncio
import logging
import os
from functools import partial
from pathlib import Path

from serve_app.cache.embedded import EmbeddedUnavailable, Lease, default_base, lease_server
from serve_app.cache.redis_client import connect
from serve_app.cache.redis_store import RedisStore
from serve_app.config import CacheConfig
from serve_app.errors import ConfigurationError
from serve_app.metrics import Meter
from serve_app.types import CacheState, StoreStats

logger = logging.getLogger(__name__)

_FLUSH_S = 2.0
_MEND_EVERY_S = 20.0


class SecondTier:
    """Opens the store at the start, and closes it when the last values are written."""

    def __init__(
        self, config: CacheConfig, space_id: str, *, service: str, owner_pid: int, meter: Meter
    ) -> None:
        """Opens what `config` says.

        Args:
            config: what is asked for.
            space_id: what the keys on the server begin with, behind the prefix.
            service: which service this is, among those on this machine.
            owner_pid: the process whose end is the service's end.
            meter: counts reads and writes.

        Raises:
            ConfigurationError: the URL can't be read, or the password isn't there.
        """
        url = config.url.get_secret_value()
        self.store: RedisStore | None = None
        self._lease: Lease | None = None
        self._mending: asyncio.Task[None] | None = None
        self._kind = url.partition(":")[0]
        self._reason: str | None = None
        if url == "embedded":
            base = default_base() if config.folder is None else Path(config.folder)
            self._take = partial(lease_server, base, service, owner_pid, config.max_bytes)
            try:
                self._lease = self._take()
            except EmbeddedUnavailable as error:
                self._reason = str(error)
                logger.warning("No embedded cache server, going on with memory only: %s", error)
                return
            url = f"unix://{self._lease.socket}"
        if url == "none":
            return
        self.store = RedisStore(
            connect(url, read_password(config.password_env), config.timeout_s),
            prefix=f"{config.prefix}:{space_id}:".encode(),
            timeout_s=config.timeout_s,
            ttl_s=config.ttl_s,
            write_queue_max_bytes=config.write_queue_max_bytes,
            meter=meter,
        )

    def start(self) -> None:
        """Begins to write and to watch; call it in the event loop."""
        if self.store is None:
            return
        self.store.start()
        if self._lease is not None:
            self._mending = asyncio.create_task(self._mend(self.store))

    async def _mend(self, store: RedisStore) -> None:
        """Has a server that was given up started again: a lease taken anew does that."""
        while True:
            await asyncio.sleep(_MEND_EVERY_S)
            if store.state == "up":
                continue
            try:
                lease = await asyncio.to_thread(self._take)
            except EmbeddedUnavailable as error:
                logger.warning("The embedded cache server is away: %s", error)
                continue
            if self._lease is not None:
                self._lease.release()
            self._lease = lease

    @property
    def state(self) -> CacheState:
        """How it is now."""
        if self.store is None:
            if self._reason is None:
                return CacheState("off")
            return CacheState("degraded", self._reason, self._kind)
        reason = self.store.reason
        return CacheState("up" if reason is None else "degraded", reason, self._kind)

    async def report(self) -> StoreStats | None:
        """What the server tells of itself; None when there is none, or it doesn't answer."""
        return None if self.store is None else await self.store.stats()

    async def purge(self) -> int:
        """Deletes what is kept of this space, and tells how many values.

        Raises:
            Unavailable: the server doesn't answer.
        """
        return 0 if self.store is None else await self.store.purge()

    async def close(self) -> None:
        """Writes what waits, for two seconds at the most, and lets the server go."""
        if self._mending is not None:
            self._mending.cancel()
        if self.store is not None:
            await self.store.flush(_FLUSH_S)
            await self.store.close()
        if self._lease is not None:
            self._lease.release()


def read_password(name: str | None) -> str | None:
    """The password of the server: the one secret that is read from the environment.

    Raises:
        ConfigurationError: the variable isn't set.
    """
    if name is None:
        return None
    password = os.environ.get(name)
    if password is None:
        raise ConfigurationError(
            f"`cache.password_env` names {name}, which isn't set where the replica runs. Set it "
            "for Ray on each machine, or in the deployment's `ray_actor_options.runtime_env`."
        )
    return password
