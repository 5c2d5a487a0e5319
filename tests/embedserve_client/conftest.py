"""A scripted server, and one interface to both clients."""

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from embedserve_client import AsyncClient, Client
from embedserve_client.vectors import Vectors
from tests.embedserve_client.scripted_server import ScriptedServer, running_server

#: Options of the tested clients; they retry without a delay.
OPTIONS = {"max_retries": 3, "max_retry_delay_s": 0.0, "timeout_s": 60.0}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "API_KEY", "FALLBACK", "LOCAL_MODEL"):
        monkeypatch.delenv(f"EMBEDSERVE_{name}", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running_server() as running:
        yield running


class AnyClient(Protocol):
    """What the tests call on both clients."""

    client: Client | AsyncClient

    def embed(self, texts: str | list[str], **options: Any) -> Vectors: ...
    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...


class SyncAdapter:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = Client(*args, **{**OPTIONS, **options})

    def embed(self, texts: str | list[str], **options: Any) -> Vectors:
        return self.client.embed(texts, **options)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, method)(*args, **kwargs)

    def close(self) -> None:
        self.client.close()


class AsyncAdapter:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*args, **{**OPTIONS, **options})

    def embed(self, texts: str | list[str], **options: Any) -> Vectors:
        return self.runner.run(self.client.embed(texts, **options))

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.runner.run(getattr(self.client, method)(*args, **kwargs))

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[SyncAdapter, AsyncAdapter], ids=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Creates clients of either kind and closes them after the test."""
    adapters: list[Any] = []

    def make(*args: Any, **options: Any) -> AnyClient:
        adapters.append(request.param(*args, **options))
        adapter: AnyClient = adapters[-1]
        return adapter

    yield make
    for adapter in adapters:
        adapter.close()
