"""The Redis or Valkey server that the replicas of a service share: external, embedded or none."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NotRequired, TypedDict

from serve_app.config import CacheConfig
from serve_app.config.secret import read_secret
from serve_app.valkey.client import Client, connect
from serve_app.valkey.embedded import EmbeddedUnavailable, Lease, default_data_dir, lease_server
from serve_app.valkey.remote_server import FindServer, RemoteServer
from serve_app.valkey.server_address import ServerAddress, open_port

logger = logging.getLogger(__name__)


class ServiceIdentity(TypedDict):
    """Selects the embedded server of a service among those of all services on the machine."""

    service: str  #: the same after a restart
    owner_pid: int  #: a process that lives as long as the service does on this machine
    find_server: NotRequired[FindServer]  #: only where another machine runs the embedded server


class SharedServer:
    """Connects to the configured server and holds the lease on an embedded one."""

    def __init__(
        self,
        config: CacheConfig,
        *,
        service: str,
        owner_pid: int,
        find_server: FindServer | None = None,
        keep_alive_every_s: float = 20.0,
    ) -> None:
        """A server that isn't connected to yet.

        Args:
            config: settings of the cache.
            service: identifies the service among those on this machine.
            owner_pid: a process that lives as long as the service does.
            find_server: see `RemoteServer`; None: an embedded server runs on this machine.
            keep_alive_every_s: interval at which `keep_alive` checks the server.
        """
        self._config = config
        self._url = config.url.get_secret_value()
        self._lease: Lease | None = None
        data_dir = default_data_dir() if config.data_dir is None else Path(config.data_dir)
        self._lease_server = partial(lease_server, data_dir, service, owner_pid, config.max_bytes)
        self._remote = None if find_server is None else RemoteServer(find_server)
        self._keep_alive_every_s = keep_alive_every_s
        self.kind = self._url.partition(":")[0]  #: as in `CacheState`

    @property
    def is_embedded(self) -> bool:
        """Whether the service starts the server itself; `connect` then may block."""
        return self._url == "embedded"

    def connect(self) -> Client | None:
        """Returns a client that connects with its first command; None if no server is configured.

        Raises:
            ConfigurationError: the URL is invalid, or the password's variable isn't set.
            EmbeddedUnavailable: the embedded server can't run.
        """
        url = self._url
        if url == "none":
            return None
        if self.is_embedded:
            if self._remote is not None:
                return self._remote.connect()
            lease = self._renew_lease()
            return connect(lease.url, lease.password, self._config.timeout_s)
        name = self._config.password_env
        password = None if name is None else read_secret(name, "cache.password_env")
        return connect(url, password, self._config.timeout_s)

    def open_port(self, host: str) -> ServerAddress:
        """Leases the embedded server again, and opens it to other machines. Blocks.

        Raises:
            EmbeddedUnavailable: the embedded server can't run.
            OSError: see `server_address.open_port`.
        """
        lease = self._renew_lease()
        return open_port(lease.socket, lease.password, host)

    async def keep_alive(self, is_up: Callable[[], bool]) -> None:
        """Restarts an embedded server whose supervisor has given up, by renewing the lease.

        Finds the server if another machine runs it. Runs until cancelled; returns at once if the
        server isn't embedded.
        """
        if self._remote is not None:
            await self._remote.keep_connected(is_up)
        while self._lease is not None:
            await asyncio.sleep(self._keep_alive_every_s)
            if is_up():
                continue
            try:
                await asyncio.to_thread(self._renew_lease)
            except EmbeddedUnavailable as error:
                logger.warning("The embedded cache server is unavailable: %s", error)

    def release(self) -> None:
        """Releases the lease; safe to call twice."""
        if self._lease is not None:
            self._lease.release()

    def _renew_lease(self) -> Lease:
        lease = self._lease_server()
        self.release()
        self._lease = lease
        return lease
