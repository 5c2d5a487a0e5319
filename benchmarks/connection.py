"""A keep-alive HTTP/1.1 connection with minimal Python overhead per request."""

import asyncio
from typing import NamedTuple, Self, cast

import httptools


class Response(NamedTuple):
    """A response without its body, of which only the size is kept."""

    status: int
    body_bytes: int


class Connection(asyncio.Protocol):
    """Sends one request at a time; `httptools`, uvicorn's parser, reads the response."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._reset_parser()

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        """Opens a connection to a host and port.

        Raises:
            OSError: the server can't be reached.
        """
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, request: bytes) -> Response:
        """Sends an encoded HTTP request and waits for the complete response.

        Raises:
            ConnectionError: the server closed the connection, or sent no HTTP.
        """
        if self._transport is None:
            raise ConnectionError("The connection is closed.")
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        """Closes the connection; a pending `send` raises `ConnectionError`."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implements `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's isn't a subclass of it

    def data_received(self, data: bytes) -> None:
        """Implements `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"Not an HTTP response: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Implements `asyncio.Protocol`."""
        self._transport = None
        self._fail(ConnectionError("The server closed the connection."))

    def on_body(self, body: bytes) -> None:
        """Implements the `httptools` protocol: a part of the body."""
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        """Implements the `httptools` protocol: the end of the response."""
        response = Response(self._parser.get_status_code(), self._body_bytes)
        if not self._parser.should_keep_alive():
            self.close()
        self._reset_parser()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)

    def _reset_parser(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body_bytes = 0

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
