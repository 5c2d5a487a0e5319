"""The embedded server of another machine of a cluster."""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from serve_app.errors import EmbedServeError
from serve_app.valkey.client import connect_to
from serve_app.valkey.server_address import ServerAddress

logger = logging.getLogger(__name__)

FindServer = Callable[[], Awaitable[ServerAddress]]

#: The call starts a process on the other machine if none answers it yet.
_FIND_TIMEOUT_S = 10.0
_RETRY_AFTER_S = 1.0
#: While the server is up. It ends some time after the last process that uses it by its unix socket.
_CHECKS_BEFORE_FIND = 5


class RemoteServer:
    """Finds the server in the background: connections fail at once until its address is known."""

    def __init__(self, find: FindServer) -> None:
        """A server that isn't found until `keep_connected`.

        Args:
            find: opens the server to other machines and returns its address. Raises any error.
        """
        self._find = find
        self._address: ServerAddress | None = None
        self._reason = "the cache server of the head isn't found yet"

    def connect(self) -> Redis:
        """Returns a client that connects with its first command."""
        return connect_to(self._find_address)

    async def keep_connected(self, is_up: Callable[[], bool]) -> None:
        """Asks for the address: at first, every second while not `is_up`, else every five seconds.

        Runs until cancelled.
        """
        while True:
            try:
                async with asyncio.timeout(_FIND_TIMEOUT_S):
                    self._address = await self._find()
            except TimeoutError:
                self._set_reason("the head doesn't say where its cache server is")
            except EmbedServeError as error:
                self._set_reason(str(error))
            except Exception as error:  # any of Ray's
                self._set_reason(f"Ray's call to the head fails, {type(error).__name__}")
                logger.debug("Ray's call to the head fails.", exc_info=True)
            for _ in range(_CHECKS_BEFORE_FIND):
                await asyncio.sleep(_RETRY_AFTER_S)
                if not is_up():
                    break

    def _find_address(self) -> ServerAddress:
        if self._address is None:
            error = OSError(errno.ENOTCONN, self._reason)
            raise RedisConnectionError(self._reason) from error
        return self._address

    def _set_reason(self, reason: str) -> None:
        if reason != self._reason:
            logger.warning("No cache server is found: %s", reason)
        self._reason = reason
