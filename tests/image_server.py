"""An HTTP server of images that misbehaves on demand."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Runs the action of the path, and records the request."""

    protocol_version = "HTTP/1.1"
    server: "ImageServer"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        try:
            self.server.actions[self.path.partition("?")[0]](self)
        except OSError:  # the client left
            self.close_connection = True

    def reply(
        self, body: bytes, media_type: str = "image/png", status: int = 200, **headers: str
    ) -> None:
        """Sends a complete response."""
        self.start(status, {"content-type": media_type, "content-length": str(len(body))} | headers)
        self.wfile.write(body)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends the head of a response."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


Action = Callable[[Handler], object]


def redirect(location: str, status: int = 302, **headers: str) -> Action:
    """Returns an action that redirects."""
    return lambda handler: handler.reply(b"", status=status, location=location, **headers)


class ImageServer(ThreadingHTTPServer):
    """Responds to each path with an action; `stopped` ends those that wait."""

    daemon_threads = False

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.actions: dict[str, Action] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """Runs a server in a thread."""
    server = ImageServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()
