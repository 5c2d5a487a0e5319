"""A response of server-sent events."""

from collections.abc import AsyncIterator, Mapping

import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.web.endpoint import ViewStream

EVENT_STREAM = "text/event-stream"
#: A line that clients ignore. It keeps proxies from closing an idle connection.
HEARTBEAT = b": still here\n\n"


def event(data: object) -> bytes:
    """Returns a JSON value as one event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def event_stream(stream: ViewStream, method: str, headers: Mapping[str, str]) -> Response:
    """Returns the response of a stream of events; of `HEAD`, that without events."""
    # The second header is for nginx, which else collects some kilobytes before it sends them.
    headers = {**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
    if method == "HEAD":
        stream.close()
        return Response(None, 200, headers, media_type=EVENT_STREAM)
    return EventStreamResponse(stream, headers)


class EventStreamResponse(StreamingResponse):
    """Sends events until the stream ends or the client leaves. Not compressed, not cached."""

    def __init__(self, stream: ViewStream, headers: Mapping[str, str]) -> None:
        """Takes over a stream, which is closed with the response."""
        super().__init__(_parts(stream), 200, headers, media_type=EVENT_STREAM)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _parts(stream: ViewStream) -> AsyncIterator[bytes]:
    while (part := await stream.next()) is not None:
        yield part
