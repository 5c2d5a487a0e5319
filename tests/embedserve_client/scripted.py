"""A server that does what a test tells it, one act for each request: also what no server should."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import orjson

SPACE = "0123456789abcdef-fp32"
DIM = 4
#: What it is asked by a request; it returns True when it has answered.
Act = Callable[["Handler"], None]


def vector(text: str) -> list[float]:
    """What a text is answered with: numbers that tell it from others."""
    return [float(len(text)), *(float(byte) for byte in text.encode()[:3].ljust(3, b"\0"))]


class Handler(BaseHTTPRequestHandler):
    """One request, read whole."""

    protocol_version = "HTTP/1.1"
    server: "Scripted"

    def log_message(self, *about: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers `/health` and its like."""
        self.server.asked.append(self.path)
        if self.path == "/health":
            healthy = self.server.healthy
            self.reply(200 if healthy else 503, {"status": "ok" if healthy else "unavailable"})
        else:
            self.reply(404, {"error": {"message": "Nothing is here.", "code": "unknown_url"}})

    def do_POST(self) -> None:
        """Does the next act of the script, and vectors when it has ended."""
        self.body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.asked.append(self.path)
            server.bodies.append(self.body)
            server.headers.append(dict(self.headers))
            act = server.script.pop(0) if server.script else vectors()
        act(self)

    def reply(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, cut: int = 0
    ) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - cut])
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Scripted(ThreadingHTTPServer):
    """The server; `asked` tells what came, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.script: list[Act] = []
        self.healthy = True
        self.outlasted = False  #: a client waited for longer than anybody should
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def posts(self) -> int:
        return self.asked.count("/v1/embeddings")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


@contextmanager
def scripted() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def vectors(space: str | None = SPACE, **headers: str) -> Act:
    """The right answer."""

    def act(handler: Handler) -> None:
        texts = handler.body["input"]
        values = np.array([vector(text) for text in texts], dtype="<f4")
        about = {
            "content-type": "application/octet-stream",
            "x-embedding-shape": f"{len(texts)},{DIM}",
            "x-embedding-model": "m",
            "x-embedding-tokens": "7",
            **({"x-embedding-space": space} if space else {}),
            **headers,
        }
        handler.reply(200, values.tobytes(), about)

    return act


def answer(status: int, body: Any, headers: Mapping[str, str] | None = None, cut: int = 0) -> Act:
    """This answer; `cut`: without its last bytes."""
    return lambda handler: handler.reply(status, body, headers, cut)


def refuse(status: int, message: str = "no", **headers: str) -> Act:
    """An error of OpenAI's dialect."""
    error = {"message": message, "code": "c", "param": "p", "type": "t"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, {"error": error}, named)


def hang_up(handler: Handler) -> None:
    """No answer at all."""
    handler.hang_up()


def drip(handler: Handler) -> None:
    """A body that never ends, a byte now and then."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)
    handler.server.outlasted = True


def silence(handler: Handler) -> None:
    """Nothing, for longer than anybody waits."""
    time.sleep(5)
    handler.server.outlasted = True
