"""What clients of a cluster count as right, wrong, refused, failed and repeated."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.node_load import MODEL, Load, Outcome
from serve_app.config.model import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.models import resolve

ENGINE = HashingEngine(resolve(ModelConfig.model_validate(MODEL)))


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `mode` says, with right vectors by default."""

    def do_POST(self) -> None:
        mode = self.server.mode  # type: ignore[attr-defined]
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        if mode == "broken":
            return
        vectors = ENGINE.run("embed", ENGINE.tokenizer.encode(texts))
        if mode == "wrong":
            vectors = vectors[::-1]
        data = [{"embedding": vector.tolist()} for vector in vectors]
        body = json.dumps({"data": data}).encode()
        self.send_response({"429": 429, "500": 500}.get(mode, 200))
        if mode == "429":
            self.send_header("retry-after", "1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def outcome(server: ThreadingHTTPServer, mode: str, *addresses: str) -> Outcome:
    server.mode = mode  # type: ignore[attr-defined]
    with Load(server.server_port) as load:
        load.add_client(*addresses)
        deadline_s = time.monotonic() + 10
        while len(load.requests) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
    return load.outcome("event", 0, 0, [])


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("right", "right"),
        ("wrong", "wrong"),
        ("429", "refused"),
        ("500", "failed"),
        ("broken", "failed"),
    ],
)
def test_each_request_has_one_kind(server: ThreadingHTTPServer, mode: str, kind: str) -> None:
    result = outcome(server, mode, "127.0.0.1")
    assert result.sent >= 3
    assert getattr(result, kind) == result.sent
    assert result.repeated == 0


def test_a_client_of_several_machines_goes_on_at_the_next_one(server: ThreadingHTTPServer) -> None:
    result = outcome(server, "right", "127.0.0.2", "127.0.0.1")  # nothing listens on the first
    assert (result.right, result.repeated) == (result.sent, 1)


def test_requests_to_a_machine_that_failed_are_counted_apart(server: ThreadingHTTPServer) -> None:
    server.mode = "500"  # type: ignore[attr-defined]
    with Load(server.server_port) as load:
        load.add_client("127.0.0.1")
        while not load.requests:
            time.sleep(0.01)
    result = load.outcome("event", 0, 0, ["127.0.0.1"])
    assert (result.unreachable, result.failed) == (result.sent, 0)
