"""What is put under load: an HTTP server, by itself or through our own client, or a Ray handle."""

import asyncio
import logging
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import orjson

from .client import Client, HttpClient
from .connection import Connection
from embedserve_client import AsyncClient, EmbedError, Retry
from embedserve_client import Client as OwnClient
from serve_app.types import Float32

_TIMEOUT_S = 60.0
_BODIES: dict[str, tuple[str, Callable[[list[str], str], dict[str, Any]]]] = {
    "openai": ("/v1/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "infinity": ("/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "tei": ("/embed", lambda texts, model: {"inputs": texts}),
}
DIALECTS = tuple(_BODIES)
HANDLE = "ray:"
OURS = "client:"


class Target(Protocol):
    """A server under load."""

    @property
    def url(self) -> str:
        """Where it is."""
        ...

    def describe(self) -> dict[str, str]:
        """What a record tells of it."""
        ...

    def client(self, most: int) -> Client:
        """A client with at most `most` requests on their way; for the running event loop."""
        ...

    async def knock(self) -> None:
        """Makes sure that somebody is there.

        Raises:
            OSError: nobody is.
        """
        ...

    def vectors(self, texts: list[str]) -> Float32:
        """The server's vectors of texts, shape (n, dim).

        Raises:
            OSError: the server isn't there, or refuses.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A server, its dialect, and the model to ask for."""

    url: str
    dialect: str = "openai"
    model: str = "all-MiniLM-L6-v2"

    def describe(self) -> dict[str, str]:
        """What a record tells of it."""
        return {"url": self.url, "dialect": self.dialect, "model": self.model}

    def client(self, most: int) -> Client:
        """A client with at most `most` connections."""
        return HttpClient(self._address, self.request, most)

    async def knock(self) -> None:
        """Opens a connection and closes it."""
        connection = await Connection.open(self._address)
        connection.close()

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
        """The server's vectors of texts, shape (n, dim)."""
        head, _, content = self.request(texts).partition(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        url = f"http://{urlsplit(self.url).netloc}{path}"
        asked = urllib.request.Request(url, content, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as reply:
            body = orjson.loads(reply.read())
        rows = body if self.dialect == "tei" else [item["embedding"] for item in body["data"]]
        return np.array(rows, dtype=np.float32)

    @property
    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80


@dataclass(frozen=True, slots=True)
class ClientTarget:
    """A server that is asked through our own Python client, to tell what that costs."""

    address: str

    @property
    def url(self) -> str:
        """`client:` and the address."""
        return f"{OURS}{self.address}"

    def describe(self) -> dict[str, str]:
        """What a record tells of it."""
        return {"url": self.url, "dialect": "client"}

    def client(self, most: int) -> Client:
        """A client with at most `most` calls on their way."""
        return _OwnClient(self.address, most)

    async def knock(self) -> None:
        """Asks whether it is there."""
        async with AsyncClient(self.address) as client:
            if not await client.is_healthy():
                raise OSError(f"Nobody answers at {self.address}.")

    def vectors(self, texts: list[str]) -> Float32:
        """The server's vectors of texts, shape (n, dim)."""
        try:
            with OwnClient(self.address) as client:
                return client.embed(texts)
        except EmbedError as error:
            raise OSError(str(error)) from None


class _OwnClient:
    def __init__(self, address: str, most: int) -> None:
        self._client = AsyncClient(address, retry=Retry(attempts=0))
        self._places = asyncio.Semaphore(most)

    async def ask(self, texts: list[str]) -> str | None:
        async with self._places:
            try:
                await self._client.embed(texts)
            except EmbedError as error:
                return error.code
        return None

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class HandleTarget:
    """An application of the running Ray cluster, asked as another Ray job would ask it."""

    application: str

    @property
    def url(self) -> str:
        """`ray:` and the application's name."""
        return f"{HANDLE}{self.application}"

    def describe(self) -> dict[str, str]:
        """What a record tells of it."""
        return {"url": self.url, "dialect": "handle"}

    def client(self, most: int) -> Client:
        """A client with at most `most` calls on their way."""
        return _HandleClient(self._handle(), most)

    async def knock(self) -> None:
        """Finds the application."""
        self._handle()

    def vectors(self, texts: list[str]) -> Float32:
        """The application's vectors of texts, shape (n, dim)."""
        vectors: Float32 = self._handle().embed.remote(texts).result(timeout_s=_TIMEOUT_S)
        return vectors

    def _handle(self) -> Any:
        import ray
        from ray import serve
        from ray.serve.exceptions import RayServeException

        try:
            if not ray.is_initialized():
                ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
            return serve.get_app_handle(self.application)
        except (ConnectionError, RayServeException) as error:
            raise OSError(str(error).strip().splitlines()[0]) from None


class _HandleClient:
    def __init__(self, handle: Any, most: int) -> None:
        self._handle = handle
        self._places = asyncio.Semaphore(most)

    async def ask(self, texts: list[str]) -> str | None:
        async with self._places:
            try:
                await self._handle.embed.remote(texts)
            except Exception as error:
                return type(error).__name__  # whatever was raised there is a failure to count
        return None

    def close(self) -> None:
        pass
