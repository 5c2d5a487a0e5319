"""Limits on requests before they are parsed: how many run at once, how large and slow a body is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded


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
