"""How the load generator asks: several requests at a time, each text list in, what failed out."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from .connection import Connection


class Client(Protocol):
    """Asks one server; how many requests are on their way at once is bounded."""

    async def ask(self, texts: list[str]) -> str | None:
        """Asks for the vectors of texts and throws them away.

        Returns:
            None, or in a word why there were no vectors.

        Raises:
            OSError: the server is not there, or went away.
        """
        ...

    def close(self) -> None:
        """Lets go of what is open."""
        ...


class HttpClient:
    """Asks over keep-alive connections; one that broke is replaced by a new one."""

    def __init__(
        self, address: tuple[str, int], encode: Callable[[list[str]], bytes], most: int
    ) -> None:
        """A client of the server at `address`, with at most `most` connections.

        `encode` makes the bytes of a whole HTTP/1.1 request.
        """
        self._address = address
        self._encode = encode
        self._places = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    async def ask(self, texts: list[str]) -> str | None:
        """Asks over a connection that is free, or a new one."""
        request = self._encode(texts)
        async with self._places:
            connection = self._idle.pop() if self._idle else None
            if connection is None or not connection.usable:
                connection = await Connection.open(self._address)
            try:
                reply = await connection.ask(request)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
        return None if reply.status == 200 else str(reply.status)

    def close(self) -> None:
        """Closes every connection."""
        for connection in self._idle:
            connection.close()
