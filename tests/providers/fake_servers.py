"""Servers on free ports that speak the wire formats of OpenAI, Azure, Cohere and Voyage.

They answer like the provider, or misbehave once for each `Behavior` in `server.script`.
"""

import hashlib
import json
import threading
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np

from serve_app.types import Float32

#: `azure` also serves Azure's version 1, which is OpenAI's format on another path.
Kind = Literal["openai", "azure", "cohere", "voyage"]
KEY = "sk-fake-0123456789abcdef"
DIM = 8
#: A text with this word is refused, in a message that quotes the key.
REFUSED_WORD = "forbidden"
MAX_TEXTS = {"openai": 2048, "azure": 2048, "cohere": 96, "voyage": 1000}

Item = dict[str, Any]
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Behavior:
    """What a server does with one request."""

    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: bytes | None = None  #: in place of the reply
    error_body: bytes | None = None  #: in place of the body of an error
    change: Callable[[list[Item]], list[Item]] | None = None  #: of the embeddings in the reply
    hangs: bool = False  #: never answers
    is_slow: bool = False  #: sends a byte at a time, with pauses, and never ends
    closes: Literal["", "before", "within"] = ""  #: the connection, before or within the reply


def _numbers(item: Item, change: Callable[[Float32], Float32]) -> Item:
    return item | {"vector": change(item["vector"])}


GOOD = Behavior()
HANGS = Behavior(hangs=True)
SLOW_BYTES = Behavior(is_slow=True)
CLOSED = Behavior(closes="before")
CUT_OFF = Behavior(closes="within")
SERVER_ERROR = Behavior(status=500)
OVERLOADED_SERVER = Behavior(status=503, headers={"Retry-After": "7"})
RATE_LIMITED = Behavior(status=429)
UNAUTHORIZED = Behavior(status=401)
NOT_FOUND = Behavior(status=404)
GARBAGE = Behavior(body=b"<html>not \xff JSON</html>")
HALF_JSON = Behavior(body=b'{"data": [')
OTHER_JSON = Behavior(body=b'["embeddings"]')
EMPTY_JSON = Behavior(body=b"{}")
DEEP_JSON = Behavior(body=b"[" * 100_000)
HALF_LIST = Behavior(change=lambda items: items[: len(items) // 2])
TWICE = Behavior(change=lambda items: [items[0], *items[:-1]])
TOO_WIDE = Behavior(
    change=lambda items: [_numbers(item, lambda v: np.append(v, v)) for item in items]
)
NAN = Behavior(
    change=lambda items: [_numbers(item, lambda v: v * np.float32("nan")) for item in items]
)
INFINITE = Behavior(
    change=lambda items: [_numbers(item, lambda v: v * np.float32("inf")) for item in items]
)
NO_BASE64 = Behavior(change=lambda items: [item | {"text": "*" * 40} for item in items])
STRINGS = Behavior(change=lambda items: [item | {"text": ["1.0"] * DIM} for item in items])
#: A provider may do so: the vectors have indices.
REORDERED = Behavior(change=lambda items: items[::-1])
#: Some servers ignore that base64 was asked for.
FLOATS = Behavior(change=lambda items: [item | {"text": item["vector"].tolist()} for item in items])


def rate_limited(**headers: str) -> Behavior:
    """Returns a 429 with headers: `retry_after_ms="500"` is sent as `retry-after-ms`."""
    return Behavior(
        status=429, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def fake_vector(text: str, input_type: str = "", dim: int = DIM) -> Float32:
    """Returns the vector of length 1 that a server has for a text."""
    seed = hashlib.sha256(f"{input_type}\n{text}".encode()).digest()
    vector = np.random.default_rng([*seed]).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def fake_vectors(*texts: str, input_type: str = "", dim: int = DIM) -> Float32:
    """Returns the vectors of texts; shape (n, dim)."""
    return np.stack([fake_vector(text, input_type, dim) for text in texts])


def count_tokens(*texts: str) -> int:
    """Returns the number of tokens that a server bills: one for each word."""
    return sum(len(text.split()) for text in texts)


@dataclass(frozen=True)
class Received:
    """A request that a server received."""

    path: str
    headers: Headers
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The texts in the body."""
        texts: list[str] = self.body["texts" if "texts" in self.body else "input"]
        return texts


class FakeServer:
    """A provider's API.

    Attributes:
        url: its address, to which `base_url` is set.
        script: what it does with the next requests; then it answers as it should.
        keys: the API keys that it accepts.
        received: the requests.
        connections: how many connections were opened.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.script: deque[Behavior] = deque()
        self.keys = {KEY}
        self.received: list[Received] = []
        self.connections = 0
        self.is_stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        prefix = {"openai": "/v1", "azure": "", "cohere": "", "voyage": "/v1"}[kind]
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"

    def serve(self) -> None:
        """Serves until `stop`."""
        self._server.serve_forever(poll_interval=0.02)

    def stop(self) -> None:
        """Ends also the requests that hang."""
        self.is_stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def reply(self, received: Received, behavior: Behavior) -> tuple[int, bytes]:
        """Returns the status and the body of a reply."""
        status = behavior.status
        if status == 200 and self._key(received.headers) not in self.keys:
            status = 401
        if status == 200 and (fault := self._fault(received)):
            return 400, self._error(fault)
        if status != 200:
            if behavior.error_body is not None:
                return status, behavior.error_body
            return status, self._error(f"Status {status} for the key {self._key(received.headers)}")
        if behavior.body is not None:
            return status, behavior.body
        return status, json.dumps(self._content(received, behavior)).encode()

    def _key(self, headers: Headers) -> str:
        return headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")

    def _fault(self, received: Received) -> str:
        """Returns why the provider refuses a request, or nothing."""
        body = received.body
        if self.kind == "cohere" and not body.get("input_type"):
            return "valid input_type must be provided with the provided model"
        if len(received.texts) > MAX_TEXTS[self.kind]:
            return "too many texts"
        if any(REFUSED_WORD in text for text in received.texts):
            return f"A text is refused. Your key is {self._key(received.headers)}."
        if "" in received.texts:
            return "a text is empty"
        return ""

    def _content(self, received: Received, behavior: Behavior) -> Item:
        body, texts = received.body, received.texts
        dim = body.get("dimensions") or body.get("output_dimension") or DIM
        items: list[Item] = [
            {"index": i, "vector": fake_vector(text, body.get("input_type") or "", dim)}
            for i, text in enumerate(texts)
        ]
        if behavior.change is not None:
            items = behavior.change(items)
        embeddings = [
            item.get("text") or b64encode(item["vector"].astype("<f4").tobytes()).decode()
            for item in items
        ]
        if self.kind == "cohere":
            return {
                "id": "1",
                "embeddings": {"base64": embeddings},
                "texts": texts,
                "meta": {
                    "api_version": {"version": "2"},
                    "billed_units": {"input_tokens": float(count_tokens(*texts))},
                },
                "response_type": "embeddings_by_type",
            }
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": item["index"], "embedding": embedding}
                for item, embedding in zip(items, embeddings, strict=True)
            ],
            "model": body.get("model"),
            "usage": {"prompt_tokens": count_tokens(*texts), "total_tokens": count_tokens(*texts)},
        }

    def _error(self, message: str) -> bytes:
        content: Item = {
            "error": {"message": message, "type": "error", "param": None, "code": None}
        }
        if self.kind == "cohere":
            content = {"id": "1", "message": message}
        elif self.kind == "voyage":
            content = {"detail": message}
        return json.dumps(content).encode()


class _Handler(BaseHTTPRequestHandler):
    """Reads requests of one connection and sends what the server replies."""

    protocol_version = "HTTP/1.1"

    def __init__(self, fake: FakeServer, *args: Any) -> None:
        self._fake = fake
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self._fake.connections += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        received = Received(self.path, headers, body)
        self._fake.received.append(received)
        behavior = self._fake.script.popleft() if self._fake.script else GOOD
        if behavior.hangs:
            self._fake.is_stopped.wait()
        self.close_connection = behavior.hangs or behavior.is_slow or bool(behavior.closes)
        if not behavior.hangs and behavior.closes != "before":
            status, content = self._fake.reply(received, behavior)
            self._send(behavior, status, content)

    def _send(self, behavior: Behavior, status: int, content: bytes) -> None:
        self.send_response(status)
        for name, value in behavior.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if behavior.is_slow:
            self._send_slowly(content)
        elif behavior.closes == "within":
            self.wfile.write(content[: len(content) // 2])
        else:
            self.wfile.write(content)

    def _send_slowly(self, content: bytes) -> None:
        with suppress(OSError):  # the client has left
            for byte in content[:-1]:
                self.wfile.write(bytes([byte]))
                if self._fake.is_stopped.wait(0.05):
                    break

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextmanager
def run_fake_server(kind: Kind) -> Iterator[FakeServer]:
    """Serves a provider's API on a free port of the loopback interface."""
    server = FakeServer(kind)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
