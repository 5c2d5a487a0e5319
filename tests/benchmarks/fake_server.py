"""A threaded HTTP server with a configurable delay.

As a program: `python -m tests.benchmarks.fake_server PORT [DELAY_MS] [SALT] [MAX_PER_S]`. With a
salt it returns the vectors of another model.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from tests.fakes import fake_vector


class FakeServer:
    """Answers in every dialect, one request at a time, each after `delay_s`.

    Requests beyond `max_per_s` in a second are rejected.
    """

    def __init__(self) -> None:
        self.url = ""
        self.delay_s = 0.0
        self.salt = ""
        self.status = 200
        self.max_per_s = float("inf")
        self._recent = deque[float]()
        self.requests: list[tuple[str, Any]] = []
        self.authorizations = set[str | None]()  #: of all requests
        self._lock = threading.Lock()

    def respond(self, path: str, body: Any) -> tuple[int, bytes]:
        self.requests.append((path, body))
        with self._lock:
            time.sleep(self.delay_s)
            self._recent.append(time.monotonic())
            while self._recent[0] < self._recent[-1] - 1:
                self._recent.popleft()
            status = self.status if len(self._recent) <= self.max_per_s else 429
        texts = body.get("input", body.get("inputs"))
        vectors = [fake_vector(self.salt + text).tolist() for text in texts]
        if path == "/embed":
            return status, orjson.dumps(vectors)
        return status, orjson.dumps({"data": [{"embedding": vector} for vector in vectors]})


def listen(server: FakeServer, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: two would wait for delayed acknowledgements

        def do_POST(self) -> None:
            server.authorizations.add(self.headers["authorization"])
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = server.respond(self.path, body)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    return http


@contextmanager
def running_server() -> Iterator[FakeServer]:
    server = FakeServer()
    with listen(server, 0) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield server
        http.shutdown()
        thread.join()


if __name__ == "__main__":
    port, *optional = sys.argv[1:]
    delay_ms, salt, max_per_s = (*optional, *("0", "", "inf")[len(optional) :])
    server = FakeServer()
    server.delay_s = float(delay_ms) / 1000
    server.salt = salt
    server.max_per_s = float(max_per_s)
    with listen(server, int(port)) as http:
        http.serve_forever()
