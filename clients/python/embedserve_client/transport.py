"""HTTP over sockets, through httpx2: request → response, httpx2's errors → the client's."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx2

from embedserve_client.errors import EmbedError, NetworkError, ParseError, RequestTimeoutError
from embedserve_client.retry import Send
from embedserve_client.wire import Response

#: A service that listens accepts connections at once.
_CONNECT_TIMEOUT_S = 5.0
#: The service sends a body in one piece, so a pause inside it means a broken connection.
_BODY_STALL_S = 5.0
_MAX_RESPONSE_BYTES = 1 << 30
#: Concurrent requests on an event loop. Thousands of connections would exceed the limit of open
#: files, and the pool takes a time that grows with their square.
_MAX_REQUESTS = 100


def map_error(error: httpx2.HTTPError) -> EmbedError:
    """Converts an error of httpx2 to the client's class."""
    reason = str(error) or type(error).__name__
    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return NetworkError(f"Can't connect to {_address(error)}: {reason}")
        case httpx2.TimeoutException():
            return RequestTimeoutError("The service didn't respond in time.")
        case httpx2.DecodingError():
            return ParseError(f"The response can't be decoded: {reason}")
        case _:
            return NetworkError(f"The connection broke: {reason}")


def _address(error: httpx2.HTTPError) -> str:
    return f"{error.request.url.host}:{error.request.url.port or error.request.url.scheme}"


class _BodyBuffer:
    """Collects a response body, up to a deadline and a maximum size."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._chunks: list[bytes] = []
        self._bytes = 0

    def append(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes > _MAX_RESPONSE_BYTES:
            raise ParseError(f"The response is larger than {_MAX_RESPONSE_BYTES} bytes.")
        if time.monotonic() > self._deadline:
            raise RequestTimeoutError("The response didn't end in time.")

    def response(self, response: httpx2.Response) -> Response:
        return Response(response.status_code, dict(response.headers), b"".join(self._chunks))


def _timeouts(timeout_s: float) -> dict[str, float]:
    others = dict.fromkeys(("read", "write", "pool"), timeout_s)
    return {"connect": min(_CONNECT_TIMEOUT_S, timeout_s), **others}


class Transport:
    """A pool of keep-alive connections to one base URL. Safe across threads and forks."""

    def __init__(self, base_url: str, headers: dict[str, str], max_keepalive: int) -> None:
        self._base_url = base_url
        self._headers = headers
        self._max_keepalive = max_keepalive
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._client = httpx2.Client(
            base_url=self._base_url,
            headers=self._headers,
            limits=_limits(self._max_keepalive),
            verify=_verify(self._base_url),
        )

    def send(self, step: Send) -> Response:
        """Sends a request and reads the complete response.

        Raises:
            NetworkError: there is no connection, or it broke.
            RequestTimeoutError: the response wasn't complete in time.
            ParseError: the response can't be decoded or is too large.
        """
        if self._pid != os.getpid():
            self._open()  # the sockets and locks that a fork copied belong to the parent
        body = _BodyBuffer(time.monotonic() + step.timeout_s)
        timeouts = _timeouts(step.timeout_s)
        try:
            request = self._client.build_request(
                step.request.method,
                step.request.path,
                headers=dict(step.request.headers),
                content=step.request.content or None,
                extensions={"timeout": timeouts},
            )
            response = self._client.send(request, stream=True)
            timeouts["read"] = min(_BODY_STALL_S, timeouts["read"])
            try:
                for chunk in response.iter_bytes():
                    body.append(chunk)
            finally:
                response.close()
        except httpx2.HTTPError as error:
            raise map_error(error) from error
        return body.response(response)

    def close(self) -> None:
        """Closes the connections."""
        if self._pid == os.getpid():
            self._client.close()


class AsyncTransport:
    """`Transport` for event loops.

    Connections belong to an event loop, so each loop has its own pool. It is closed by `close`, or
    when `asyncio.run` ends, so that a program may call `asyncio.run` again and again.
    """

    def __init__(self, base_url: str, headers: dict[str, str], max_keepalive: int) -> None:
        self._options: dict[str, Any] = {
            "base_url": base_url,
            "headers": headers,
            "limits": _limits(max_keepalive),
            "verify": _verify(base_url),
            "timeout": None,
        }
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}

    async def send(self, step: Send) -> Response:
        """Sends a request and reads the complete response; raises like `Transport.send`."""
        pool = await self._pool()
        body = _BodyBuffer(time.monotonic() + step.timeout_s)
        try:
            async with (
                asyncio.timeout(step.timeout_s),
                pool.slots,
                pool.client.stream(
                    step.request.method,
                    step.request.path,
                    headers=dict(step.request.headers),
                    content=step.request.content or None,
                    timeout=httpx2.Timeout(**_timeouts(step.timeout_s)),
                ) as response,
            ):
                async for chunk in response.aiter_bytes():
                    body.append(chunk)
        except httpx2.HTTPError as error:
            raise map_error(error) from error
        except TimeoutError:
            raise RequestTimeoutError("The service didn't respond in time.") from None
        return body.response(response)

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        if pool := self._pools.get(asyncio.get_running_loop()):
            await pool.closer.aclose()

    async def _pool(self) -> "_Pool":
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in list(self._pools):
                if other.is_closed():  # without `asyncio.run`, nothing closed its pool
                    self._pools.pop(other, None)
            client = httpx2.AsyncClient(**self._options)
            closer = self._close_later(loop, client)
            pool = self._pools[loop] = _Pool(client, asyncio.Semaphore(_MAX_REQUESTS), closer)
            await anext(closer)
        return pool

    async def _close_later(
        self, loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient
    ) -> AsyncGenerator[None]:
        """Closes a pool when the generator is closed: `asyncio.run` closes all at its end."""
        try:
            yield
        finally:
            self._pools.pop(loop, None)
            await client.aclose()


class _Pool(NamedTuple):
    """The connections of an event loop."""

    client: httpx2.AsyncClient
    slots: asyncio.Semaphore
    closer: AsyncGenerator[None]  #: closing it closes them


def _verify(base_url: str) -> bool:
    """Loading the system's certificates is slow, and only TLS needs them."""
    return base_url.startswith("https:")


def _limits(max_keepalive: int) -> httpx2.Limits:
    # Unlimited connections: the threads of a program may exceed the client's own concurrency.
    return httpx2.Limits(max_connections=None, max_keepalive_connections=max(20, max_keepalive))
