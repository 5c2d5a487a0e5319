"""Requests over sockets: what httpx2 gives and what it raises, in the client's own words."""

import asyncio
import os
import time

import httpx2

from embedserve_client.errors import EmbedError, NetworkError, ParseError, Timeout
from embedserve_client.retry import Send
from embedserve_client.wire import Reply

#: A service that is there takes a connection at once.
_CONNECT_S = 5.0
#: Vectors come all together when they come: a body that stands still for so long is given up.
_BODY_STALL_S = 5.0
_MAX_REPLY_BYTES = 1 << 30


def mapped(error: httpx2.HTTPError) -> EmbedError:
    """The error in the client's words."""
    reason = str(error) or type(error).__name__
    match error:
        case httpx2.ConnectTimeout() | httpx2.ConnectError():
            return NetworkError(f"Nobody answers at {_address(error)}: {reason}")
        case httpx2.TimeoutException():
            return Timeout("The service didn't answer in time.")
        case httpx2.DecodingError():
            return ParseError(f"The answer can't be read: {reason}")
        case _:
            return NetworkError(f"The connection broke: {reason}")


def _address(error: httpx2.HTTPError) -> str:
    return f"{error.request.url.host}:{error.request.url.port or error.request.url.scheme}"


class _Body:
    """Takes a body in, within its time and its size."""

    def __init__(self, end: float) -> None:
        self._end = end
        self._parts: list[bytes] = []
        self._bytes = 0

    def take(self, part: bytes) -> None:
        self._parts.append(part)
        self._bytes += len(part)
        if self._bytes > _MAX_REPLY_BYTES:
            raise ParseError(f"The answer is larger than {_MAX_REPLY_BYTES} bytes.")
        if time.monotonic() > self._end:
            raise Timeout("The answer didn't end in time.")

    def reply(self, response: httpx2.Response) -> Reply:
        return Reply(response.status_code, dict(response.headers), b"".join(self._parts))


def _timeouts(timeout_s: float) -> dict[str, float]:
    rest = dict.fromkeys(("read", "write", "pool"), timeout_s)
    return {"connect": min(_CONNECT_S, timeout_s), **rest}


class Transport:
    """Keep-alive connections for one base URL. Safe from many threads, and after a fork."""

    def __init__(self, url: str, headers: dict[str, str], connections: int) -> None:
        self._url = url
        self._headers = headers
        self._connections = connections
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._http = httpx2.Client(
            base_url=self._url,
            headers=self._headers,
            limits=_limits(self._connections),
            verify=_verify(self._url),
        )

    def send(self, step: Send) -> Reply:
        """Sends a request and reads the reply whole.

        Raises:
            NetworkError, Timeout, ParseError: as they say.
        """
        if self._pid != os.getpid():
            self._open()  # what a fork copied, sockets and locks, is the parent's
        body = _Body(time.monotonic() + step.timeout_s)
        timeouts = _timeouts(step.timeout_s)
        asked = step.request
        try:
            request = self._http.build_request(
                asked.method,
                asked.path,
                headers=dict(asked.headers),
                content=asked.content or None,
                extensions={"timeout": timeouts},
            )
            response = self._http.send(request, stream=True)
            timeouts["read"] = min(_BODY_STALL_S, timeouts["read"])
            try:
                for part in response.iter_bytes():
                    body.take(part)
            finally:
                response.close()
        except httpx2.HTTPError as error:
            raise mapped(error) from error
        return body.reply(response)

    def close(self) -> None:
        """Closes its connections."""
        if self._pid == os.getpid():
            self._http.close()


class AsyncTransport:
    """The same for an event loop."""

    def __init__(self, url: str, headers: dict[str, str], connections: int) -> None:
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            limits=_limits(connections),
            verify=_verify(url),
            timeout=None,
        )

    async def send(self, step: Send) -> Reply:
        """Sends a request and reads the reply whole; raises as `Transport.send`."""
        body = _Body(time.monotonic() + step.timeout_s)
        asked = step.request
        try:
            async with (
                asyncio.timeout(step.timeout_s),
                self._http.stream(
                    asked.method,
                    asked.path,
                    headers=dict(asked.headers),
                    content=asked.content or None,
                    timeout=httpx2.Timeout(**_timeouts(step.timeout_s)),
                ) as response,
            ):
                async for part in response.aiter_bytes():
                    body.take(part)
        except httpx2.HTTPError as error:
            raise mapped(error) from error
        except TimeoutError:
            raise Timeout("The service didn't answer in time.") from None
        return body.reply(response)

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()


def _verify(url: str) -> bool:
    """Reading the system's certificates takes a while, and only TLS needs them."""
    return url.startswith("https:")


def _limits(connections: int) -> httpx2.Limits:
    # One is kept for each request that may be under way; what users' own threads add isn't refused.
    return httpx2.Limits(max_connections=None, max_keepalive_connections=max(20, connections))
