"""How a server is asked: the bytes of one HTTP request in its dialect."""

import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from serve_app.types import Float32

_TIMEOUT_S = 60.0
_BODIES: dict[str, tuple[str, Callable[[list[str], str], dict[str, Any]]]] = {
    "openai": ("/v1/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "infinity": ("/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "tei": ("/embed", lambda texts, model: {"inputs": texts}),
}
DIALECTS = tuple(_BODIES)


@dataclass(frozen=True, slots=True)
class Target:
    """A server, its dialect, and the model to ask for."""

    url: str
    dialect: str = "openai"
    model: str = "all-MiniLM-L6-v2"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def request(self, texts: list[str]) -> bytes:
        """A whole HTTP/1.1 request that asks for the vectors of texts."""
        path, body = _BODIES[self.dialect]
        content = orjson.dumps(body(texts, self.model))
        head = (
            f"POST {urlsplit(self.url).path.rstrip('/')}{path} HTTP/1.1\r\n"
            f"host: {urlsplit(self.url).netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def vectors(self, texts: list[str]) -> Float32:
        """The server's vectors of texts, shape (n, dim).

        Raises:
            OSError: the server isn't there, or refuses.
        """
        head, _, content = self.request(texts).partition(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        url = f"http://{urlsplit(self.url).netloc}{path}"
        asked = urllib.request.Request(url, content, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as reply:
            body = orjson.loads(reply.read())
        rows = body if self.dialect == "tei" else [item["embedding"] for item in body["data"]]
        return np.array(rows, dtype=np.float32)
