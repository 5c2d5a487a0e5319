"""A stream of events over a real socket, to clients that read and to one that stops reading."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.command.ports import free_port
from serve_app.web.endpoint import ViewStream
from serve_app.web.event_stream import event, event_stream

TIMEOUT_S = 30
#: More than the buffers of a connection on one machine hold.
LARGE_EVENT = event("z" * 4_000_000)


class Source:
    """Events without end, or a number of them."""

    def __init__(self, part: bytes, number: int) -> None:
        self.closed = threading.Event()
        self._part, self._left = part, number

    async def _next(self) -> bytes | None:
        self._left -= 1
        return self._part if self._left >= 0 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = ViewStream(self._next, self.closed.set)
        await event_stream(stream, "GET", {}, stall_timeout_s=1)(scope, receive, send)


@contextmanager
def connection(source: Source) -> Iterator[socket.socket]:
    port = free_port()
    # Its own log would stay on in the tests that follow.
    server = uvicorn.Server(
        uvicorn.Config(
            source, port=port, lifespan="off", timeout_graceful_shutdown=1, log_config=None
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + TIMEOUT_S
    while not server.started:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as client:
            client.sendall(b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            yield client
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)


def test_a_client_that_stops_reading_loses_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(LARGE_EVENT, 1_000)
    with connection(source) as client:
        assert client.recv(64).startswith(b"HTTP/1.1 200 ")
        assert source.closed.wait(TIMEOUT_S)
    assert "takes no events" in caplog.text


def test_a_client_that_reads_gets_everything() -> None:
    source, received = Source(LARGE_EVENT, 3), 0
    with connection(source) as client, suppress(ConnectionResetError):
        while chunk := client.recv(1 << 20):
            received += chunk.count(b"z")
    assert received == 3 * 4_000_000
    assert source.closed.is_set()
