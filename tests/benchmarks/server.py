"""A server to put load on: plain, threaded, and as slow as a test wants it.

As a program: `python -m tests.benchmarks.server PORT [MILLISECONDS] [SALT]`; with a salt its
vectors are those of another model.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from tests.fakes import fake_vector


class Server:
    """Answers in every dialect, one request at a time, each in `takes_s`."""

    def __init__(self) -> None:
        self.url = ""
        self.takes_s = 0.0
        self.salt = ""
        self.refuses = False
        self.asked: list[tuple[str, Any]] = []
        self.one_at_a_time = threading.Lock()

    def answer(self, path: str, body: Any) -> bytes:
        self.asked.append((path, body))
        with self.one_at_a_time:
            time.sleep(self.takes_s)
        texts = body.get("input", body.get("inputs"))
        vectors = [fake_vector(self.salt + text).tolist() for text in texts]
        if path == "/embed":
            return orjson.dumps(vectors)
        return orjson.dumps({"data": [{"embedding": vector} for vector in vectors]})


def listen(server: Server, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet, or each waits for an acknowledgement

        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            content = server.answer(self.path, body)
            self.send_response(429 if server.refuses else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    return http


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    with listen(server, 0) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield server
        http.shutdown()
        thread.join()


if __name__ == "__main__":
    port, *rest = sys.argv[1:]
    takes_ms, salt = (*rest, *("0", "")[len(rest) :])
    alone = Server()
    alone.takes_s = float(takes_ms) / 1000
    alone.salt = salt
    with listen(alone, int(port)) as listening:
        listening.serve_forever()
