"""What keeps one client, or all of them together, from taking more than there is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serve_app.errors import BodyTimeout, BodyTooLarge, Overloaded


class Gate:
    """Lets a bounded number of requests in at a time and refuses the next one at once."""

    def __init__(self) -> None:
        self._inside = 0

    @contextmanager
    def entered(self, limit: int) -> Iterator[None]:
        """Holds a place for the time of a `with` block.

        Raises:
            Overloaded: all `limit` places are taken.
        """
        if self._inside >= limit:
            raise Overloaded(f"{limit} requests are in progress already; try later.")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, or an error before more than `max_bytes` of it are held.

    Raises:
        BodyTooLarge: it is longer; a declared length is believed, an undeclared one counted.
        BodyTimeout: the client takes longer than `timeout_s` to send it.
    """
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(
        f"The body is larger than {max_bytes} bytes. Split the request into smaller ones."
    )
    # Python makes no number of thousands of digits.
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
