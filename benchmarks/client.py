"""Clients of the load generator: they send texts, discard the vectors and report failures."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from .connection import Connection


class LoadClient(Protocol):
    """A client of one server with a limit on concurrent requests."""

    async def send(self, texts: list[str]) -> str | None:
        """Requests the vectors of texts and discards them.

        Returns:
            None on success, else a short reason, such as a status code.

        Raises:
            OSError: the server can't be reached, or closed the connection.
        """
        ...

    def close(self) -> None:
        """Closes all connections."""
        ...


class HttpClient:
    """Sends requests over a pool of keep-alive connections."""

    def __init__(
        self,
        address: tuple[str, int],
        encode_request: Callable[[list[str]], bytes],
        max_connections: int,
    ) -> None:
        """Creates a client without opening a connection.

        Args:
            address: the server's host and port.
            encode_request: returns the complete HTTP/1.1 request for a list of texts.
            max_connections: the maximum number of concurrent requests.
        """
        self._address = address
        self._encode_request = encode_request
        self._semaphore = asyncio.Semaphore(max_connections)
        self._idle: list[Connection] = []

    async def send(self, texts: list[str]) -> str | None:
        """Sends a request over an idle connection, or a new one."""
        request = self._encode_request(texts)
        async with self._semaphore:
            connection = self._idle.pop() if self._idle else None
            if connection is None or not connection.is_open:
                connection = await Connection.open(self._address)
            try:
                response = await connection.send(request)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
        return None if response.status == 200 else str(response.status)

    def close(self) -> None:
        """Closes all idle connections."""
        for connection in self._idle:
            connection.close()
