"""A scripted server for faults, and both clients behind one face."""

import asyncio
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from embedserve_client import AsyncClient, Client, Retry
from embedserve_client.vectors import Vectors
from tests.embedserve_client.scripted import Scripted, scripted

#: Tries again without waiting.
AT_ONCE = Retry(attempts=3, waits=False)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "API_KEY", "FALLBACK", "LOCAL_MODEL"):
        monkeypatch.delenv(f"EMBEDSERVE_{name}", raising=False)


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


class Face(Protocol):
    """What both clients can do."""

    def embed(self, texts: str | list[str], **how: Any) -> Vectors: ...
    def call(self, method: str, *args: Any, **how: Any) -> Any: ...


class SyncFace:
    def __init__(self, *args: Any, **settings: Any) -> None:
        self.client = Client(*args, **{"retry": AT_ONCE, "timeout_s": 10.0, **settings})

    def embed(self, texts: str | list[str], **how: Any) -> Vectors:
        return self.client.embed(texts, **how)

    def call(self, method: str, *args: Any, **how: Any) -> Any:
        return getattr(self.client, method)(*args, **how)

    def close(self) -> None:
        self.client.close()


class AsyncFace:
    def __init__(self, *args: Any, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*args, **{"retry": AT_ONCE, "timeout_s": 10.0, **settings})

    def embed(self, texts: str | list[str], **how: Any) -> Vectors:
        return self.runner.run(self.client.embed(texts, **how))

    def call(self, method: str, *args: Any, **how: Any) -> Any:
        return self.runner.run(getattr(self.client, method)(*args, **how))

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[SyncFace, AsyncFace], ids=["sync", "async"])
def made(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes a client of either kind; closed at the end."""
    faces: list[Any] = []

    def make(*args: Any, **settings: Any) -> Any:
        faces.append(request.param(*args, **settings))
        return faces[-1]

    yield make
    for face in faces:
        face.close()
