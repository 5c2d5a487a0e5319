"""Connections of a standalone service: bytes that aren't HTTP, and headers without an end."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.command.ports import free_port
from serve_app.web import http_protocol
from serve_app.web.http_protocol import MAX_HEADER_BYTES, HttpProtocol

#: Far more than any test needs.
LIMIT_S = 30
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"


class EchoApp:
    """Responds with the body, once it is `released`."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.started = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.started.set()
        await self.released.wait()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def app() -> EchoApp:
    return EchoApp()


@pytest.fixture
async def port(app: EchoApp) -> AsyncIterator[int]:
    port = free_port()
    config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, http=HttpProtocol)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(LIMIT_S):
        while not server.started:
            await asyncio.sleep(0.001)
    yield port
    app.released.set()
    server.should_exit = True
    await task


async def exchange(port: int, *data: bytes) -> bytes:
    """Sends data in segments and returns everything until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for segment in data:
        writer.write(segment)
        await writer.drain()
        await asyncio.sleep(0.01)
    async with asyncio.timeout(LIMIT_S):
        reply = await reader.read()
    writer.close()
    return reply


def error_of(reply: bytes) -> tuple[int, str]:
    """Returns the status and the code of an error, which is a whole reply."""
    header, body = reply.split(b"\r\n\r\n", 1)
    assert b"content-length: %d" % len(body) in header
    assert b"content-type: application/json" in header
    assert b"connection: close" in header
    return int(header.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x00\xa5\r\n\r\n", b"GET nothing\r\n\r\n", b"POST / HTTP/1.1\r\na b: c\r\n\r\n"],
    ids=["TLS", "no version", "header"],
)
async def test_bytes_that_are_not_http_get_a_400(port: int, data: bytes) -> None:
    assert error_of(await exchange(port, data)) == (400, "invalid_value")
    assert error_of(await exchange(port, data[:5], data[5:])) == (400, "invalid_value")


async def test_a_broken_chunk_gets_a_400(port: int) -> None:
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
    assert error_of(await exchange(port, chunked)) == (400, "invalid_value")


async def test_a_request_is_answered_before_the_connection_of_later_garbage_closes(
    port: int, app: EchoApp
) -> None:
    app.released.clear()
    task = asyncio.create_task(exchange(port, REQUEST, b"\x00garbage\r\n\r\n"))
    await app.started.wait()
    await asyncio.sleep(0.05)
    app.released.set()
    reply = await task
    assert reply.startswith(b"HTTP/1.1 200")
    assert reply.endswith(b"\r\n\r\nhi")
    assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "before", [(), (b"GET / HTTP/1.1\r\nhost:",)], ids=["nothing sent", "half a header"]
)
async def test_a_header_that_never_ends_gets_a_408(
    port: int, before: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.1)
    assert error_of(await exchange(port, *before)) == (408, "request_timeout")


async def test_the_header_of_a_later_request_has_the_same_limit(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.1)
    reply = await exchange(port, REQUEST, REQUEST[:20])
    first, _, second = reply.partition(b"\r\n\r\nhi")
    assert first.startswith(b"HTTP/1.1 200")
    assert error_of(second) == (408, "request_timeout")


async def test_a_request_may_take_longer_than_its_header(
    port: int, app: EchoApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.05)
    app.released.clear()
    request = REQUEST.replace(b"host: x", b"host: x\r\nconnection: close")
    task = asyncio.create_task(exchange(port, request))
    await asyncio.sleep(0.2)
    app.released.set()
    assert (await task).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("line", [b"a" * 1000, b"x: " + b"y" * 1000 + b"\r\n"])
async def test_a_header_that_is_too_large_gets_a_431(port: int, line: bytes) -> None:
    lines = [b"POST / HTTP/1.1\r\nx: ", *[line] * (MAX_HEADER_BYTES // 1000 + 2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(lines))
    async with asyncio.timeout(LIMIT_S):
        assert error_of(await reader.read()) == (431, "header_too_large")
    writer.close()


async def test_a_large_body_is_not_a_header(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    body = b"x" * (3 * MAX_HEADER_BYTES)
    header = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    reply = await exchange(port, header % len(body), body)
    assert reply.endswith(body)
    assert caplog.records == []
