"""How a server is asked: the bytes of one HTTP request in its dialect."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

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
