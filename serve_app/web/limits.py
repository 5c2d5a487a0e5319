"""Limits on requests before they are parsed: how many run at once, how large and slow a body is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded
from serve_app.time_limit import limit_time

#: A client that sends as fast as it can looks for a response only when its send buffer is full.
_PAUSE_S = 0.05
#: Time in which the buffers between the client and this process fill up, before they are given up:
#: some 20 MB with a proxy in between, on a machine with no core to spare.
_LAST_PAUSE_S = 5.0


class ConcurrencyLimiter:
    """Bounds the requests in progress: rejects a request over the limit instead of queueing it."""

    def __init__(self) -> None:
        self._in_progress = 0

    @property
    def in_progress(self) -> int:
        """The number of requests in progress."""
        return self._in_progress

    @contextmanager
    def slot(self, limit: int) -> Iterator[None]:
        """Holds one of `limit` slots inside a `with` block.

        Raises:
            Overloaded: all slots are in use.
        """
        if self._in_progress >= limit:
            raise Overloaded(f"{limit} requests are in progress already; try later.")
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1


class RequestBody:
    """The body of one request, as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_complete = False

    async def read(self, *, max_bytes: int, timeout_s: float, declared: str = "") -> bytes:
        """Returns the body, holding at most `max_bytes` of it in memory.

        Args:
            max_bytes: limit of the size.
            timeout_s: limit of the time.
            declared: the header `Content-Length`; a body that declares more isn't read.

        Raises:
            BodyTooLarge: `declared` or the number of bytes received is over `max_bytes`.
            BodyTimeout: the body is not complete after `timeout_s`.
            ClientDisconnect: the client left before.
        """
        too_large = (
            f"The body is larger than {max_bytes} bytes. Split the request into smaller ones."
        )
        # `int` rejects strings of thousands of digits with a ValueError.
        if declared.isdecimal() and (len(declared) > 20 or int(declared) > max_bytes):
            raise BodyTooLarge(too_large)
        try:
            body = await limit_time(self._read(max_bytes), timeout_s)
        except TimeoutError:
            raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s.") from None
        if len(body) > max_bytes:
            raise BodyTooLarge(too_large)
        return body

    async def _read(self, max_bytes: int) -> bytes:
        """Returns the body, or its beginning once that is over the limit."""
        body = await self._next_chunk()
        if self._is_complete:
            return body
        chunks, size = [body], len(body)
        while size <= max_bytes and not self._is_complete:
            chunks.append(await self._next_chunk())
            size += len(chunks[-1])
        return b"".join(chunks)

    async def discard(self, *, max_bytes: int, timeout_s: float) -> bool:
        """Reads and discards the rest of the body, if there is any.

        Returns:
            True if the body is complete: the connection can take another request. False if it
            isn't after `max_bytes` or `timeout_s`, or if the client disconnects.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self._is_complete and max_bytes >= 0:
                    max_bytes -= len(await self._next_chunk())
        except (ClientDisconnect, TimeoutError):
            return False
        return self._is_complete

    async def _next_chunk(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self._is_complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk


class LingeringResponse(Response):
    """A response to a request whose body is still arriving; the connection closes afterwards.

    A connection that is closed with unread data is reset, and many clients then report a broken
    pipe in place of the response. So the rest of the body is discarded, within limits, between the
    response and the end of the connection.
    """

    def __init__(
        self, response: Response, body: RequestBody, *, max_bytes: int, timeout_s: float
    ) -> None:
        """Takes over body, status and headers of a response.

        Args:
            response: the response.
            body: that of the request; the rest is discarded.
            max_bytes: maximum number of bytes to discard.
            timeout_s: maximum time.
        """
        super().__init__(response.body, response.status_code)
        self.raw_headers = [*response.raw_headers, (b"connection", b"close")]
        self._body, self._max_bytes, self._timeout_s = body, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, discards the rest of the body, and then ends the response."""

        async def send_and_linger(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "more_body": True})
            await asyncio.sleep(_PAUSE_S)
            if not await self._body.discard(max_bytes=self._max_bytes, timeout_s=self._timeout_s):
                await asyncio.sleep(_LAST_PAUSE_S)
            await send({"type": "http.response.body", "body": b""})

        await super().__call__(scope, receive, send_and_linger)
