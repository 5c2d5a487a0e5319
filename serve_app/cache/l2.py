"""The tier that replicas share: a server elsewhere, an embedded one, or none."""

import asyncio
import logging

from serve_app.cache.redis_store import RedisStore
from serve_app.config import CacheConfig
from serve_app.metrics import Meter
from serve_app.types import CacheState, StoreStats
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.shared_server import SharedServer

logger = logging.getLogger(__name__)

_FLUSH_S = 2.0


class L2Cache:
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
        self.store: RedisStore | None = None
        self._server = SharedServer(config, service=service, owner_pid=owner_pid)
        self._mending: asyncio.Task[None] | None = None
        self._reason: str | None = None
        try:
            client = self._server.connect()
        except EmbeddedUnavailable as error:
            self._reason = str(error)
            logger.warning("No embedded cache server, going on with memory only: %s", error)
            return
        if client is None:
            return
        self.store = RedisStore(
            client,
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
        store = self.store
        self._mending = asyncio.create_task(self._server.keep_alive(lambda: store.state == "up"))

    @property
    def state(self) -> CacheState:
        """How it is now."""
        if self.store is None:
            if self._reason is None:
                return CacheState("off")
            return CacheState("degraded", self._reason, self._server.kind)
        reason = self.store.reason
        return CacheState("up" if reason is None else "degraded", reason, self._server.kind)

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
        self._server.release()
