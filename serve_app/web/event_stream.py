"""A response of server-sent events."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping

import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve_app.web.endpoint import ViewStream

logger = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
#: A line that clients ignore. It keeps proxies from closing an idle connection.
HEARTBEAT = b": still here\n\n"
#: Longest time in which a client takes nothing, while the buffers on the way to it are full.
STALL_TIMEOUT_S = 30.0


def event(data: object) -> bytes:
    """Returns a JSON value as one event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def event_stream(
    stream: ViewStream,
    method: str,
    headers: Mapping[str, str],
    *,
    stall_timeout_s: float = STALL_TIMEOUT_S,
) -> Response:
    """Returns the response of a stream of events; of `HEAD`, that without events."""
    # The second header is for nginx, which else collects some kilobytes before it sends them.
    headers = {**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
    if method == "HEAD":
        stream.close()
        return Response(None, 200, headers, media_type=EVENT_STREAM)
    return EventStreamResponse(stream, headers, stall_timeout_s)


class EventStreamResponse(StreamingResponse):
    """Sends events until the stream ends, or the client leaves or stops reading.

    Not compressed, not cached.
    """

    def __init__(
        self, stream: ViewStream, headers: Mapping[str, str], stall_timeout_s: float
    ) -> None:
        """Takes over a stream, which is closed with the response."""
        super().__init__(_parts(stream), 200, headers, media_type=EVENT_STREAM)
        self._stream = stream
        self._stall_timeout_s = stall_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._stall_timeout_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:  # a stream is one of few, which a client must not hold for ever
            logger.warning("A client takes no events: its stream ends")
        finally:
            self._stream.close()


async def _parts(stream: ViewStream) -> AsyncIterator[bytes]:
    while (part := await stream.next()) is not None:
        yield part
