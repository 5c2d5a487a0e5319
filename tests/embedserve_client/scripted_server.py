"""An HTTP server that runs a script: one action per request, including faults."""

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
#: Responds to a request.
Action = Callable[["Handler"], None]


def vector(text: str) -> list[float]:
    """Returns the vector of a text: its length and its first three bytes."""
    return [float(len(text)), *(float(byte) for byte in text.encode()[:3].ljust(3, b"\0"))]


class Handler(BaseHTTPRequestHandler):
    """Reads a request and runs the next action of the script."""

    protocol_version = "HTTP/1.1"
    server: "ScriptedServer"

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""

    def do_GET(self) -> None:
        """Responds to `/health`, and to `/info` if there is one; other paths are unknown."""
        self.server.paths.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/health":
            healthy = self.server.healthy
            self.respond(200 if healthy else 503, {"status": "ok" if healthy else "unavailable"})
        elif path == "/info" and self.server.info is not None:
            self.respond(200, self.server.info)
        else:
            self.respond(404, {"error": {"message": "Not found.", "code": "unknown_url"}})

    def do_POST(self) -> None:
        """Runs the next action of the script; after its end, responds with vectors."""
        self.body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.paths.append(self.path)
            server.bodies.append(self.body)
            server.headers.append(dict(self.headers))
            action = server.script.pop(0) if server.script else vectors()
        action(self)

    def respond(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, cut: int = 0
    ) -> None:
        """Sends a response; with `cut`, without its last bytes."""
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) - cut])
        if cut:
            self.disconnect()

    def disconnect(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class ScriptedServer(ThreadingHTTPServer):
    """The server; it records the requests in order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.script: list[Action] = []
        self.healthy = True
        self.info: dict[str, Any] | None = None
        self.ran_to_end = False  #: a slow action ended before the client gave up
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def posts(self) -> int:
        return self.paths.count("/v1/embeddings")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect."""


@contextmanager
def running_server(port: int = 0) -> Iterator[ScriptedServer]:
    with ScriptedServer(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def vectors(space: str | None = SPACE, **headers: str) -> Action:
    """Responds with the vectors of the request's texts."""

    def action(handler: Handler) -> None:
        texts = handler.body["input"]
        values = np.array([vector(text) for text in texts], dtype="<f4")
        all_headers = {
            "content-type": "application/octet-stream",
            "x-embedding-shape": f"{len(texts)},{DIM}",
            "x-embedding-model": "m",
            "x-embedding-tokens": "7",
            **({"x-embedding-space": space} if space else {}),
            **headers,
        }
        handler.respond(200, values.tobytes(), all_headers)

    return action


def respond(
    status: int, body: Any, headers: Mapping[str, str] | None = None, cut: int = 0
) -> Action:
    """Sends this response; with `cut`, without its last bytes."""
    return lambda handler: handler.respond(status, body, headers, cut)


def error(status: int, message: str = "no", **headers: str) -> Action:
    """Sends an error in OpenAI's format."""
    body = {"error": {"message": message, "code": "c", "param": "p", "type": "t"}}
    return respond(status, body, {name.replace("_", "-"): v for name, v in headers.items()})


def disconnect(handler: Handler) -> None:
    """Closes the connection without a response."""
    handler.disconnect()


def slow_body(handler: Handler) -> None:
    """Sends a body for 10 s, byte by byte."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.05)
    handler.server.ran_to_end = True


def no_response(handler: Handler) -> None:
    """Sends nothing for 5 s."""
    time.sleep(5)
    handler.server.ran_to_end = True
