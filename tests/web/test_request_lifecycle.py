"""Request ids and clients that leave, over uvicorn as in a standalone service."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.command.ports import free_port
from serve_app.web.request_lifecycle import RequestLifecycle

#: Far more than any test needs.
LIMIT_S = 30
#: Longer than a request is unwatched.
PAUSE_S = 0.05


class FakeApp:
    """Reads a body, computes until `released`, and responds with the body."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.computing = 0
        self.cancelled = 0
        self.incomplete = 0  #: requests whose client left before the body was complete
        self.responded = 0
        self.request_ids: list[str] = []  #: as the application gets them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.request_ids += [v.decode() for name, v in scope["headers"] if name == b"x-request-id"]
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.incomplete += 1
                return
            body += message["body"]
            more = message["more_body"]
        self.computing += 1
        try:
            await self.released.wait()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            await asyncio.sleep(PAUSE_S)  # as after a response, when something is recorded
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.responded += 1


class Server:
    """The application on a port, and connections to it."""

    def __init__(self, app: FakeApp) -> None:
        self.app = app
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def leave(self, *segments: bytes, pause_s: float = 0) -> None:
        """Sends segments with a pause after each one, and closes the connection."""
        _, writer = await self.connect()
        for segment in segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.close()

    async def answers(self) -> bool:
        self.app.released.set()
        async with httpx2.AsyncClient(timeout=LIMIT_S) as client:
            return (await client.post(self.url, content=b"afterwards")).content == b"afterwards"


@pytest.fixture
async def app() -> FakeApp:
    return FakeApp()


@pytest.fixture
async def server(app: FakeApp, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Server]:
    """A server that must not log an error."""
    server = Server(app)
    config = uvicorn.Config(
        RequestLifecycle(app), port=server.port, lifespan="off", log_config=None, access_log=False
    )
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(uvicorn_server.serve())
    await until(lambda: uvicorn_server.started)
    try:
        yield server
    finally:
        app.released.set()
        uvicorn_server.should_exit = True
        await task
    assert [record.getMessage() for record in caplog.get_records("call")] == []


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def request(body: bytes, *headers: bytes) -> tuple[bytes, bytes]:
    """Returns the header and the body of a POST."""
    lines = [b"POST / HTTP/1.1", b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n", body


async def read_reply(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Returns the header and the body of a reply."""
    async with asyncio.timeout(LIMIT_S):
        header = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", header)
        assert length
        return header, await reader.readexactly(int(length[1]))


@pytest.mark.parametrize("pause_s", [0, PAUSE_S], ids=["at once", "later"])
@pytest.mark.parametrize("segments_n", [1, 2])
async def test_a_request_whose_client_leaves_is_cancelled(
    server: Server, app: FakeApp, segments_n: int, pause_s: float
) -> None:
    segments = request(b"x" * 100_000)
    await server.leave(*(segments if segments_n == 2 else [b"".join(segments)]), pause_s=pause_s)
    await until(lambda: app.cancelled + app.incomplete == 1)
    assert app.cancelled == app.computing
    assert await server.answers()
    await until(lambda: app.responded == 1)


async def test_a_client_that_leaves_during_its_body(server: Server, app: FakeApp) -> None:
    header, body = request(b"x" * 100_000)
    await server.leave(header, body[:50_000], pause_s=PAUSE_S)
    await until(lambda: app.incomplete == 1)
    assert app.computing == 0
    assert await server.answers()


async def test_a_body_that_arrives_slowly_is_complete(server: Server, app: FakeApp) -> None:
    app.released.set()
    header, body = request(bytes(range(256)) * 100)
    reader, writer = await server.connect()
    writer.write(header)
    for start in range(0, len(body), 5_000):
        writer.write(body[start : start + 5_000])
        await writer.drain()
        await asyncio.sleep(0.02)
    assert (await read_reply(reader))[1] == body
    writer.close()


async def test_a_client_that_stays_gets_its_reply(server: Server, app: FakeApp) -> None:
    reader, writer = await server.connect()
    writer.write(b"".join(request(b"body")))
    await until(lambda: app.computing == 1)
    await asyncio.sleep(PAUSE_S)  # the request is watched
    app.released.set()
    assert (await read_reply(reader))[1] == b"body"
    await until(lambda: app.responded == 1)  # what follows the reply isn't cancelled
    writer.close()


async def test_a_client_that_leaves_with_the_last_byte_of_its_reply(
    server: Server, app: FakeApp
) -> None:
    reader, writer = await server.connect()
    writer.write(b"".join(request(b"body")))
    await until(lambda: app.computing == 1)
    await asyncio.sleep(PAUSE_S)
    app.released.set()
    await read_reply(reader)
    writer.transport.abort()
    await until(lambda: app.responded == 1)


async def test_clients_that_leave_at_any_moment(server: Server, app: FakeApp) -> None:
    randomness = random.Random(1)

    async def leave(number: int) -> None:
        pause_s = randomness.random() * 0.03
        await server.leave(*request(b"%d" % number), pause_s=pause_s)

    clients = [asyncio.create_task(leave(number)) for number in range(100)]
    await asyncio.sleep(0.02)
    app.released.set()  # half of them are answered
    await asyncio.gather(*clients)
    await until(lambda: app.cancelled + app.responded == app.computing)
    assert await server.answers()


async def test_pipelined_requests(server: Server, app: FakeApp) -> None:
    reader, writer = await server.connect()
    ids = [b"first", b"second", b"third"]
    writer.write(b"".join(b"".join(request(id_, b"x-request-id: " + id_)) for id_ in ids))
    await until(lambda: app.computing == 1)
    await asyncio.sleep(PAUSE_S)
    app.released.set()
    for id_ in ids:
        header, body = await read_reply(reader)
        assert body == id_
        assert header.count(b"x-request-id: " + id_) == header.count(b"x-request-id") == 1
    await until(lambda: app.responded == 3)
    writer.close()


async def test_each_reply_has_one_request_id(server: Server, app: FakeApp) -> None:
    app.released.set()
    sent: list[list[tuple[str, str]]] = [[], [], [("x-request-id", "a 1"), ("X-Request-ID", "b")]]
    async with httpx2.AsyncClient(timeout=LIMIT_S) as client:
        replies = [await client.post(server.url, content=b"", headers=headers) for headers in sent]
    first, second, echoed = (reply.headers.get_list("x-request-id") for reply in replies)
    assert echoed == ["a 1"]
    assert [len(first), len(second)] == [1, 1]
    assert first != second
    assert app.request_ids == [*first, *second, "a 1", "b"]


async def test_a_request_that_the_server_cancels_stays_cancelled() -> None:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        raise AssertionError("There is no response.")

    run: Callable[..., Awaitable[None]] = RequestLifecycle(FakeApp())
    scope = {"type": "http", "headers": []}
    task = asyncio.ensure_future(run(scope, receive, send))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
