"""One keep-alive HTTP/1.1 connection with as little Python as possible between two bytes."""

import asyncio
from typing import NamedTuple, cast

import httptools


class Reply(NamedTuple):
    """What came back; the body is counted, not kept."""

    status: int
    body_bytes: int


class Connection(asyncio.Protocol):
    """Sends one request at a time; `httptools` (the parser of uvicorn) reads the reply."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._begin()

    @classmethod
    async def open(cls, address: tuple[str, int]) -> "Connection":
        """A new connection.

        Raises:
            OSError: nobody listens there.
        """
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Reply:
        """Sends a request and waits for the end of its reply.

        Raises:
            ConnectionError: the server closed the connection first.
        """
        if self._transport is None:
            raise ConnectionError("The connection is closed.")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        """Closes the connection; a reply that is waited for won't come."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's isn't a subclass of it

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"Not an HTTP reply: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop, once, whoever closed it."""
        self._transport = None
        self._fail(ConnectionError("The server closed the connection."))

    def on_body(self, body: bytes) -> None:
        """Called by the parser for each piece of the body."""
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the reply."""
        reply = Reply(self._parser.get_status_code(), self._body_bytes)
        if not self._parser.should_keep_alive():
            self.close()
        self._begin()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body_bytes = 0

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
