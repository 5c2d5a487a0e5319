"""The snapshots of a running service, read from its `GET /live`."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, cast

import httpx2

from embedserve_client.errors import EmbedError, NetworkError
from embedserve_client.transport import map_error
from serve_app.errors import Unavailable
from serve_app.live.snapshot import Snapshot

#: The service sends a heartbeat each 5 s, so a longer silence means that it hangs.
_SILENCE_S = 15.0
_CONNECT_S = 5.0
_MIN_WAIT_S, _MAX_WAIT_S = 1.0, 10.0
#: Far more than a snapshot of a thousand replicas has.
_MAX_EVENT_BYTES = 16 << 20
_MAX_ERROR_BYTES = 64 << 10


class NoSnapshot(Unavailable):
    """The service returns no snapshots; the message says what to do."""

    def __init__(
        self, message: str, status: int | None = None, retry_after_s: int | None = None
    ) -> None:
        """Creates the error.

        Args:
            message: for the user.
            status: of the HTTP reply; None: it was no error.
            retry_after_s: when another attempt may succeed; None: unknown.
        """
        super().__init__(message, retry_after_s)
        self.is_final = status is None or status in (401, 403)


class Disconnected(NamedTuple):
    """There is no connection at the moment; another attempt follows."""

    reason: str


class LiveStream:
    """Reads snapshots, and connects again after a lost connection."""

    def __init__(self, url: str, api_key: str | None, interval_s: float) -> None:
        """Connects to nothing yet.

        Args:
            url: of the service, without a trailing slash.
            api_key: None: none is sent.
            interval_s: time between two snapshots.
        """
        self.url = url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._interval_s = interval_s

    async def events(self) -> AsyncGenerator[Snapshot | Disconnected]:
        """Yields snapshots, and that there is no connection after each attempt that failed.

        Raises:
            EmbedError: the service is unreachable, and always was.
            NoSnapshot: it refuses the request or isn't compatible, and another attempt would
                change nothing; or the first attempt failed.
        """
        was_connected = False
        wait_s = _MIN_WAIT_S
        while True:
            received = False
            try:
                async for snapshot in self._snapshots():
                    was_connected = received = True
                    yield snapshot
                # Each stream ends after some minutes. Nobody needs to be told.
                reason = None if received else "the service closes each stream at once"
                retry_after_s = 0.0
            except (EmbedError, NoSnapshot) as error:
                if not was_connected or getattr(error, "is_final", False):
                    raise
                reason = str(error)
                retry_after_s = getattr(error, "retry_after_s", None) or 0.0
            if received:
                wait_s = _MIN_WAIT_S
            if reason is not None:
                yield Disconnected(reason)
            await asyncio.sleep(max(wait_s, min(retry_after_s, _MAX_WAIT_S)))
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    async def _snapshots(self) -> AsyncGenerator[Snapshot]:
        """Yields the snapshots of one connection."""
        timeout = httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S)
        try:
            async with (
                httpx2.AsyncClient(
                    base_url=self.url,
                    headers=self._headers,
                    timeout=timeout,
                    verify=self.url.startswith("https:"),
                ) as client,
                client.stream("GET", f"/live?interval_s={self._interval_s:g}") as response,
            ):
                await self._check(response)
                buffer = b""
                async for chunk in response.aiter_bytes():
                    *events, buffer = (buffer + chunk).split(b"\n\n")
                    if len(buffer) > _MAX_EVENT_BYTES:
                        raise incompatible(self.url)
                    for event in events:
                        if event.startswith(b"data: "):  # else a heartbeat
                            yield parse_snapshot(self.url, event[6:])
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ReadTimeout):
                raise NetworkError(f"the service has been silent for {_SILENCE_S:g} s") from error
            raise map_error(error) from error
        except httpx2.HTTPError as error:
            raise map_error(error) from error

    async def _check(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_ERROR_BYTES:
                    break
            raise refusal(self.url, response.status_code, body, response.headers.get("retry-after"))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise incompatible(self.url)


def parse_snapshot(url: str, body: bytes) -> Snapshot:
    """Returns the snapshot in a body or an event.

    Raises:
        NoSnapshot: it is none.
    """
    try:
        data = json.loads(body)
    except ValueError:
        raise incompatible(url) from None
    if not isinstance(data, dict) or not Snapshot.__required_keys__ <= data.keys():
        raise incompatible(url)
    return cast(Snapshot, data)


def incompatible(url: str) -> NoSnapshot:
    """Returns the error of a reply that isn't what `/live` returns."""
    return NoSnapshot(
        f"{url}/live returns no snapshot that this command can read. Check the URL, and that "
        "service and command are of the same version."
    )


def refusal(url: str, status: int, body: bytes, retry_after: str | None = None) -> NoSnapshot:
    """Returns the error of a reply with an error's status."""
    match status:
        case 401 | 403:
            advice = "Set EMBEDSERVE_API_KEY to a valid API key, or pass one with --key."
        case 404 | 405:
            advice = (
                "The server isn't EmbedServe, or an earlier version without this route. Check the "
                "URL, or update the service."
            )
        case _:
            advice = _message(body) or "Try again."
    retry_after_s = int(retry_after) if retry_after and retry_after.isdecimal() else None
    return NoSnapshot(f"{url}/live: HTTP {status}. {advice}", status, retry_after_s)


def _message(body: bytes) -> str | None:
    try:
        message: Any = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return None
    return message if isinstance(message, str) else None
