"""Load targets: an HTTP server, a server through our Python client, or a Ray Serve handle."""

import asyncio
import logging
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import orjson

from embedserve_client import AsyncClient, Client, EmbedError
from serve_app.types import Float32

from .client import HttpClient, LoadClient
from .connection import Connection

_TIMEOUT_S = 60.0
#: The path of each dialect, and its body for texts and a model.
_ENDPOINTS: dict[str, tuple[str, Callable[[list[str], str], dict[str, Any]]]] = {
    "openai": ("/v1/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "infinity": ("/embeddings", lambda texts, model: {"input": texts, "model": model}),
    "tei": ("/embed", lambda texts, model: {"inputs": texts}),
}
DIALECTS = tuple(_ENDPOINTS)
HANDLE_SCHEME = "ray:"
CLIENT_SCHEME = "client:"


class Target(Protocol):
    """A server under load."""

    @property
    def url(self) -> str:
        """The address, as the command line takes it."""
        ...

    def describe(self) -> dict[str, str]:
        """Returns the fields of a record that describe the target."""
        ...

    def client(self, max_connections: int) -> LoadClient:
        """Returns a client for the running event loop, with at most so many open requests."""
        ...

    async def check_reachable(self) -> None:
        """Checks that the server accepts connections.

        Raises:
            OSError: it does not.
        """
        ...

    def embed(self, texts: list[str]) -> Float32:
        """Returns the server's vectors of texts, shape (n, dim).

        Raises:
            OSError: the server can't be reached, or returned an error.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """An HTTP server."""

    url: str
    dialect: str = "openai"
    model: str = "all-MiniLM-L6-v2"
    api_key: str | None = field(default=None, repr=False)  #: sent as a bearer token

    def describe(self) -> dict[str, str]:
        """Returns the fields of a record that describe the target."""
        return {"url": self.url, "dialect": self.dialect, "model": self.model}

    def client(self, max_connections: int) -> LoadClient:
        """Returns a client for the running event loop."""
        return HttpClient(self.address, self.encode_request, max_connections)

    async def check_reachable(self) -> None:
        """Opens a connection and closes it."""
        connection = await Connection.open(self.address)
        connection.close()

    def encode_request(self, texts: list[str]) -> bytes:
        """Returns the complete HTTP/1.1 request for the vectors of texts."""
        path, body = _ENDPOINTS[self.dialect]
        content = orjson.dumps(body(texts, self.model))
        head = (
            f"POST {urlsplit(self.url).path.rstrip('/')}{path} HTTP/1.1\r\n"
            f"host: {urlsplit(self.url).netloc}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        )
        headers = (f"{name}: {value}\r\n" for name, value in self._authorization().items())
        return "".join((head, *headers, "\r\n")).encode() + content

    def embed(self, texts: list[str]) -> Float32:
        """Returns the server's vectors of texts, shape (n, dim)."""
        path, body = _ENDPOINTS[self.dialect]
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}{path}",
            orjson.dumps(body(texts, self.model)),
            {"content-type": "application/json", **self._authorization()},
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                content = orjson.loads(response.read())
        except (HTTPException, orjson.JSONDecodeError) as error:
            raise OSError(f"{self.url} returned no JSON over HTTP: {error!r}") from None
        if self.dialect != "tei":
            content = [item["embedding"] for item in content["data"]]
        return np.array(content, dtype=np.float32)

    def _authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80


@dataclass(frozen=True, slots=True)
class ClientTarget:
    """A server that is called through our Python client, to measure the client's overhead."""

    address: str

    @property
    def url(self) -> str:
        """`client:` and the address."""
        return f"{CLIENT_SCHEME}{self.address}"

    def describe(self) -> dict[str, str]:
        """Returns the fields of a record that describe the target."""
        return {"url": self.url, "dialect": "client"}

    def client(self, max_connections: int) -> LoadClient:
        """Returns a client for the running event loop."""
        return _AsyncClientAdapter(self.address, max_connections)

    async def check_reachable(self) -> None:
        """Requests the server's health."""
        async with AsyncClient(self.address) as client:
            if not await client.is_healthy():
                raise OSError(f"The service at {self.address} is not healthy.")

    def embed(self, texts: list[str]) -> Float32:
        """Returns the server's vectors of texts, shape (n, dim)."""
        try:
            with Client(self.address) as client:
                return client.embed(texts)
        except EmbedError as error:
            raise OSError(str(error)) from None


class _AsyncClientAdapter:
    def __init__(self, address: str, max_connections: int) -> None:
        self._client = AsyncClient(address, max_retries=0)
        self._semaphore = asyncio.Semaphore(max_connections)

    async def send(self, texts: list[str]) -> str | None:
        async with self._semaphore:
            try:
                await self._client.embed(texts)
            except EmbedError as error:
                return error.code
        return None

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class HandleTarget:
    """An application of the running Ray cluster, called as another Ray job calls it."""

    application: str

    @property
    def url(self) -> str:
        """`ray:` and the application's name."""
        return f"{HANDLE_SCHEME}{self.application}"

    def describe(self) -> dict[str, str]:
        """Returns the fields of a record that describe the target."""
        return {"url": self.url, "dialect": "handle"}

    def client(self, max_connections: int) -> LoadClient:
        """Returns a client for the running event loop."""
        return _HandleAdapter(self._handle(), max_connections)

    async def check_reachable(self) -> None:
        """Looks the application up."""
        self._handle()

    def embed(self, texts: list[str]) -> Float32:
        """Returns the application's vectors of texts, shape (n, dim)."""
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


class _HandleAdapter:
    def __init__(self, handle: Any, max_connections: int) -> None:
        self._handle = handle
        self._semaphore = asyncio.Semaphore(max_connections)

    async def send(self, texts: list[str]) -> str | None:
        async with self._semaphore:
            try:
                await self._handle.embed.remote(texts)
            except Exception as error:
                return type(error).__name__  # every exception of the replica is a failed request
        return None

    def close(self) -> None:
        pass
