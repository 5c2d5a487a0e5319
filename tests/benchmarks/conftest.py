"""A server to put load on: plain, threaded, and as slow as a test wants it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from tests.fakes import fake_vector


class Server:
    """Answers in every dialect, one request at a time, each in `takes_s`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.takes_s = 0.0
        self.refuses = False
        self.asked: list[tuple[str, Any]] = []
        self.one_at_a_time = threading.Lock()

    def answer(self, path: str, body: Any) -> bytes:
        self.asked.append((path, body))
        with self.one_at_a_time:
            time.sleep(self.takes_s)
        vectors = [fake_vector(text).tolist() for text in body.get("input", body.get("inputs"))]
        if path == "/embed":
            return orjson.dumps(vectors)
        return orjson.dumps({"data": [{"embedding": vector} for vector in vectors]})


@contextmanager
def running() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            content = started.answer(self.path, body)
            self.send_response(429 if started.refuses else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        started = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield started
        http.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def other() -> Iterator[Server]:
    with running() as started:
        yield started
