"""The deployment that opens the head's embedded cache server to replicas on other nodes."""

import asyncio
import time

from serve_app.config import AppConfig
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import returns_errors
from serve_app.deployments.service_identity import current_service, node_address
from serve_app.errors import Unavailable
from serve_app.valkey.embedded import EmbeddedUnavailable
from serve_app.valkey.server_address import ServerAddress
from serve_app.valkey.shared_server import SharedServer

#: So that many replicas that ask at once don't lease the server one after the other.
_MAX_AGE_S = 1.0


class CacheServer:
    """Holds a lease on the server of its node. Its only replica runs on the head, if one asks."""

    def __init__(self, config: AppConfig) -> None:
        """Leases nothing until the first call of `address`."""
        log_to_serve()
        self._server = SharedServer(config.cache, **current_service())
        self._lock = asyncio.Lock()
        self._address: ServerAddress | None = None
        self._opened_s = 0.0

    @returns_errors
    async def address(self) -> ServerAddress:
        """Opens the server to other nodes, and returns where they reach it.

        Raises:
            Unavailable: the server can't run, or can't listen on the node's address.
        """
        async with self._lock:
            if self._address is None or time.monotonic() - self._opened_s > _MAX_AGE_S:
                try:
                    self._address = await asyncio.to_thread(self._server.open_port, node_address())
                except (EmbeddedUnavailable, OSError) as error:
                    self._address = None
                    raise Unavailable(str(error)) from None
                self._opened_s = time.monotonic()
            return self._address

    async def __del__(self) -> None:
        """Releases the server; Ray awaits it when the replica stops."""
        self._server.release()
