"""What Ray Serve does around an application, for one that runs without it: request ids, clients
that leave.
"""

import asyncio
from random import getrandbits

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_REQUEST_ID = b"x-request-id"
#: Most requests are answered before, and then their client isn't watched.
_WATCH_AFTER_S = 0.01


class RequestLifecycle:
    """Echoes `x-request-id`, or sends a new one, and cancels requests whose client has left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the application for one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive, send, _request_id(scope))
        try:
            await self._app(scope, request.receive, request.send)
        except asyncio.CancelledError:
            if not request.client_left:
                raise
            request.task.uncancel()
        finally:
            request.close()


class _Request:
    """One request in progress."""

    def __init__(self, receive: Receive, send: Send, request_id: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None, "An ASGI server runs applications in tasks."
        self.task = task
        self.client_left = False
        self._receive, self._send, self._id = receive, send, request_id
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        """Returns the next part of the body; watches the client once it is complete."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._watch)
        return message

    async def send(self, message: Message) -> None:
        """Sends a part of the response."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (_REQUEST_ID, self._id)]
        elif not message.get("more_body"):
            # After a complete response, uvicorn reports a disconnect although the client stays.
            self.close()
        await self._send(message)

    def close(self) -> None:
        """Stops watching the client."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._cancel_when_left())

    async def _cancel_when_left(self) -> None:
        # With a complete body, the next message is the end of the connection.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
        self.task.cancel()


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            request_id: bytes = value
            return request_id
    request_id = b"%032x" % getrandbits(128)
    scope["headers"] = [*scope["headers"], (_REQUEST_ID, request_id)]  # for the log
    return request_id
