"""The L2 cache, which all replicas share: an external server, an embedded one, or none."""

import asyncio
import logging

from serve_app.cache.key import space_prefix
from serve_app.cache.redis_store import RedisStore
from serve_app.cache.report import StoreStats
from serve_app.config import CacheConfig
from serve_app.meter import Meter
from serve_app.types import CacheState
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.shared_server import ServiceIdentity, SharedServer

logger = logging.getLogger(__name__)

_FLUSH_TIMEOUT_S = 2.0


class L2Cache:
    """Owns the store and the connection to its server, for all models of a process."""

    def __init__(self, config: CacheConfig, *, server: SharedServer, meter: Meter) -> None:
        """Opens the store. Blocks while an embedded server starts.

        Args:
            config: settings of the cache.
            server: provides the client; released by `close`.
            meter: counts reads and writes.

        Raises:
            ConfigurationError: see `SharedServer.connect`.
        """
        self.store: RedisStore | None = None  #: None: no server is configured or available
        self._server = server
        self._keep_alive_task: asyncio.Task[None] | None = None
        self._reason: str | None = None
        try:
            client = server.connect()
        except EmbeddedUnavailable as error:
            self._reason = str(error)
            logger.warning("No embedded cache server; using the memory cache only: %s", error)
            return
        if client is None:
            return
        self.store = RedisStore(
            client,
            prefix=f"{config.prefix}:".encode(),
            timeout_s=config.timeout_s,
            ttl_s=config.ttl_s,
            write_queue_max_bytes=config.write_queue_max_bytes,
            meter=meter,
        )

    def start(self) -> None:
        """Starts background tasks; call it in the event loop."""
        if self.store is None:
            return
        store = self.store
        store.start()
        self._keep_alive_task = asyncio.create_task(
            self._server.keep_alive(lambda: store.state == "up")
        )

    @property
    def state(self) -> CacheState:
        """The current state."""
        if self.store is None:
            if self._reason is None:
                return CacheState("off")
            return CacheState("degraded", self._reason, self._server.kind)
        reason = self.store.reason
        return CacheState("up" if reason is None else "degraded", reason, self._server.kind)

    async def stats(self) -> StoreStats | None:
        """Returns the server's statistics; None if there is no server or it doesn't answer."""
        return None if self.store is None else await self.store.stats()

    async def purge(self, space_id: str) -> int:
        """Deletes all values of a space and returns their number.

        Raises:
            Unavailable: not all values could be deleted.
        """
        return 0 if self.store is None else await self.store.purge(space_prefix(space_id))

    async def close(self) -> None:
        """Flushes queued writes, for at most two seconds, and releases the server."""
        if self._keep_alive_task is not None:
            self._keep_alive_task.cancel()
        if self.store is not None:
            await self.store.flush(_FLUSH_TIMEOUT_S)
            await self.store.close()
        self._server.release()


def open_l2_cache(config: CacheConfig, identity: ServiceIdentity, meter: Meter) -> L2Cache:
    """Returns the L2 cache of a service; see `L2Cache`."""
    return L2Cache(config, server=SharedServer(config, **identity), meter=meter)
