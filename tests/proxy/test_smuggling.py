"""Requests whose end is ambiguous reach the application as one request, or not at all.

A proxy and a server that disagree about where a request ends take bytes of its body for a request
of another client. Each body here hides such a request.
"""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.command.ports import free_port
from serve_app.web.http_protocol import HttpProtocol
from tests.proxy.conftest import running_proxy, wait_until

HIDDEN = b"POST /hidden HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
END = b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
_CHUNKED = b"0\r\n\r\n" + HIDDEN
_CHUNKED_LENGTH = b"content-length: %d\r\n" % len(_CHUNKED)
#: Framing headers and body of a request to `/sent`.
REQUESTS = {
    "length and chunks": (_CHUNKED_LENGTH + b"transfer-encoding: chunked\r\n", _CHUNKED),
    "chunks and length": (b"transfer-encoding: chunked\r\n" + _CHUNKED_LENGTH, _CHUNKED),
    "space before the colon": (_CHUNKED_LENGTH + b"transfer-encoding : chunked\r\n", _CHUNKED),
    "folded coding": (_CHUNKED_LENGTH + b"transfer-encoding:\r\n chunked\r\n", _CHUNKED),
    "tab before the coding": (_CHUNKED_LENGTH + b"transfer-encoding:\tchunked\r\n", _CHUNKED),
    "vertical tab": (_CHUNKED_LENGTH + b"transfer-encoding: \x0bchunked\r\n", _CHUNKED),
    "underscore": (_CHUNKED_LENGTH + b"transfer_encoding: chunked\r\n", _CHUNKED),
    "unknown coding": (_CHUNKED_LENGTH + b"transfer-encoding: xchunked\r\n", _CHUNKED),
    "two codings": (_CHUNKED_LENGTH + b"transfer-encoding: chunked, identity\r\n", _CHUNKED),
    "two lines of codings": (
        _CHUNKED_LENGTH + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n",
        _CHUNKED,
    ),
    "bare line feeds": (_CHUNKED_LENGTH + b"x: y\ntransfer-encoding: chunked\r\n", _CHUNKED),
    "two lengths": (b"content-length: 0\r\ncontent-length: %d\r\n" % len(HIDDEN), HIDDEN),
    "a list of lengths": (b"content-length: 0, %d\r\n" % len(HIDDEN), HIDDEN),
    "a signed length": (b"content-length: +%d\r\n" % len(HIDDEN), HIDDEN),
    "a negative length": (b"content-length: -%d\r\n" % len(HIDDEN), HIDDEN),
    "a hexadecimal length": (b"content-length: 0x%x\r\n" % len(HIDDEN), HIDDEN),
    "a length over 64 bits": (b"content-length: 18446744073709551616\r\n", HIDDEN),
    "a chunk extension with a line feed": (
        b"transfer-encoding: chunked\r\n",
        b"2;\n%b\r\n0\r\n\r\n" % HIDDEN,
    ),
    "a chunk size that overflows": (
        b"transfer-encoding: chunked\r\n",
        b"10000000000000000\r\n%b\r\n0\r\n\r\n" % HIDDEN,
    ),
    "a chunk size with a prefix": (
        b"transfer-encoding: chunked\r\n",
        b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
    ),
    "a chunk longer than its size": (b"transfer-encoding: chunked\r\n", b"1\r\nab\r\n" + HIDDEN),
    "a trailer with a length": (
        b"transfer-encoding: chunked\r\n",
        b"%x\r\n%b\r\n0\r\ncontent-length: 9\r\n\r\n" % (len(HIDDEN), HIDDEN),
    ),
}


class Recorder:
    """An ASGI application that records the paths of the clients' requests."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != "/-/healthz":  # HAProxy's own request
            self.paths.append(scope["path"])
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        body = b"path: %b;" % scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def running_standalone(application: Recorder) -> Iterator[int]:
    """Starts the HTTP server of a service without a proxy and returns its port."""
    port = free_port()
    config = uvicorn.Config(application, port=port, log_level="error", http=HttpProtocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module", params=["HAProxy", "standalone"])
def port(
    request: pytest.FixtureRequest, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    if request.param == "standalone":
        with running_standalone(recorder) as port:
            yield port
    else:
        with running_proxy(tmp_path_factory.mktemp("haproxy"), application=recorder) as proxy:
            yield proxy.port


def post(port: int, data: bytes) -> bytes:
    """Sends bytes and returns what comes until the server closes, or waits for more of a body."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(data)
        reply = b""
        with suppress(ConnectionResetError, TimeoutError):
            while chunk := connection.recv(65536):
                reply += chunk
        return reply


@pytest.mark.parametrize("name", REQUESTS)
def test_no_part_of_a_body_becomes_a_request(port: int, recorder: Recorder, name: str) -> None:
    framing, body = REQUESTS[name]
    recorder.paths.clear()
    reply = post(port, b"POST /sent HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n" + body + END)
    assert re.findall(rb"path: (\S+);", reply) in ([], [b"/sent"], [b"/end"], [b"/sent", b"/end"])
    # The next client gets its own response.
    assert b"path: /next;" in post(port, END.replace(b"/end", b"/next"))
    assert recorder.paths.pop() == "/next"
    assert recorder.paths in ([], ["/sent"], ["/sent", "/end"]), reply


def test_a_chunk_extension_is_ignored(port: int, recorder: Recorder) -> None:
    recorder.paths.clear()
    framing = b"POST /sent HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    reply = post(port, framing + b'2;a=b;c="d"\r\nhi\r\n0\r\n\r\n' + END)
    assert re.findall(rb"path: (\S+);", reply) == [b"/sent", b"/end"]
    assert recorder.paths == ["/sent", "/end"]
