"""Limits on requests before they are parsed: how many run at once, how large and slow a body is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded

#: A client that sends as fast as it can looks for a response only when its send buffer is full.
_PAUSE_S = 0.05
#: Time in which the buffers between the client and this process fill up, before they are given up.
_LAST_PAUSE_S = 1.0


class ConcurrencyLimiter:
    """Bounds the requests in progress: rejects a request over the limit instead of queueing it."""

    def __init__(self) -> None:
        self._in_progress = 0

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


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Reads a request's body, holding at most `max_bytes` of it in memory.

    Raises:
        BodyTooLarge: `Content-Length` or the number of bytes received is over `max_bytes`.
        BodyTimeout: the body is not complete after `timeout_s`.
    """
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(
        f"The body is larger than {max_bytes} bytes. Split the request into smaller ones."
    )
    # `int` rejects strings of thousands of digits with a ValueError.
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > max_bytes):
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {timeout_s:g} s.") from None
    return b"".join(chunks)


async def discard_body(request: Request, *, max_bytes: int, timeout_s: float) -> bool:
    """Reads and discards the rest of a request's body, if there is any.

    Returns:
        True if the body is complete: the connection can take another request. False if it isn't
        after `max_bytes` or `timeout_s`, or if the client disconnects.
    """
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    return False
    except (ClientDisconnect, TimeoutError):
        return False
    except RuntimeError:  # Starlette: the stream was read to its end before
        return True
    return True


class LingeringResponse(Response):
    """A response to a request whose body is still arriving; the connection closes afterwards.

    A connection that is closed with unread data is reset, and many clients then report a broken
    pipe in place of the response. So the rest of the body is discarded, within limits, between the
    response and the end of the connection.
    """

    def __init__(
        self, response: Response, request: Request, *, max_bytes: int, timeout_s: float
    ) -> None:
        """Takes over body, status and headers of a response.

        Args:
            response: the response.
            request: the request; the rest of its body is discarded.
            max_bytes: maximum number of bytes to discard.
            timeout_s: maximum time.
        """
        super().__init__(response.body, response.status_code)
        self.raw_headers = [*response.raw_headers, (b"connection", b"close")]
        self._request, self._max_bytes, self._timeout_s = request, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response, discards the rest of the body, and then ends the response."""

        async def send_and_linger(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "more_body": True})
            await asyncio.sleep(_PAUSE_S)
            if not await discard_body(
                self._request, max_bytes=self._max_bytes, timeout_s=self._timeout_s
            ):
                await asyncio.sleep(_LAST_PAUSE_S)
            await send({"type": "http.response.body", "body": b""})

        await super().__call__(scope, receive, send_and_linger)
