import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Tier
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

SECRET = "es-secret-0123456789"
KEY = ApiKey(name="search", sha256=hashlib.sha256(SECRET.encode()).hexdigest())
HEADERS = {"authorization": f"Bearer {SECRET}", "x-request-id": "id-1"}
FIELDS = ("method", "path", "status", "texts", "tokens", "cached", "key", "request_id")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> EmbedService:
    return EmbedService(SPEC, backend, IngressSettings(request_log=True))


@pytest.fixture
async def access(service: EmbedService) -> Entrance:
    access = Entrance(MemoryQuotaStore(), service.meter.process)
    access.apply(AccessSettings(keys=(KEY,)))
    return access


@pytest.fixture
def client(service: EmbedService, access: Entrance) -> Iterator[TestClient]:
    with TestClient(
        create_app(Catalog([service]), access), raise_server_exceptions=False
    ) as client:
        yield client


class Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    handler, logger = Handler(), logging.getLogger("serve_app.requests")
    logger.addHandler(handler)
    yield handler.records
    logger.removeHandler(handler)


def fields(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in FIELDS)


def test_a_request_is_one_record_with_its_counts(
    client: TestClient, backend: FakeBackend, records: list[logging.LogRecord]
) -> None:
    backend.tiers = [Tier.L1, Tier.COMPUTED]
    client.post("/v1/embeddings", json={"input": ["aa", "b"]}, headers=HEADERS)
    (record,) = records
    assert fields(record) == ("POST", "/v1/embeddings", 200, 2, 3, 1, "search", "id-1")
    assert record.levelname == "INFO"
    assert record.getMessage().startswith("POST /v1/embeddings 200 ")
    assert record.getMessage().endswith(
        "texts=2 tokens=3 cached=1 model=org/fake key=search request_id=id-1"
    )


@pytest.mark.parametrize(
    ("path", "body", "texts"),
    [
        ("/embed_all", {"inputs": ["aa", "b"]}, 2),
        ("/vertex", {"instances": [{"inputs": "a"}, {"inputs": "b"}]}, 2),
        ("/tokenize", {"inputs": "aa"}, 1),
        ("/v1/embeddings", {"input": ["a", "b", "c"], "dimensions": 0}, 3),
    ],
)
def test_the_texts_of_every_kind_of_job_are_counted(
    client: TestClient, records: list[logging.LogRecord], path: str, body: Any, texts: int
) -> None:
    client.post(path, json=body, headers=HEADERS)
    (record,) = records
    assert record.texts == texts  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "expected"),
    [
        ("POST", "/v1/embeddings", {"input": "a"}, {}, (401, None)),
        ("POST", "/v1/embeddings", {"input": 1}, HEADERS, (400, "search")),
        ("POST", "/embed_all", {"inputs": "a"}, HEADERS, (200, "search")),
        ("POST", "/embed/text", {"text": "a"}, HEADERS, (200, "search")),
        ("GET", "/v1/models", None, HEADERS, (200, "search")),
        ("GET", "/nothing", None, {}, (404, None)),
        ("GET", "/v1/embeddings", None, {}, (405, None)),
    ],
)
def test_every_response_is_logged(
    client: TestClient,
    records: list[logging.LogRecord],
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    expected: tuple[int, str | None],
) -> None:
    client.request(method, path, json=body, headers=headers)
    (record,) = records
    assert (record.status, record.key) == expected  # type: ignore[attr-defined]
    assert (record.method, record.path) == (method, path)  # type: ignore[attr-defined]


def test_health_checks_are_not_logged(client: TestClient, records: list[logging.LogRecord]) -> None:
    for path in ("/health", "/v1/health/live", "/embed/health"):
        assert client.get(path).status_code == 200
    assert records == []


def test_neither_texts_nor_keys_are_logged(
    client: TestClient, records: list[logging.LogRecord]
) -> None:
    for path, body in (
        ("/v1/embeddings", {"input": "my text"}),
        ("/embed/query", {"query": "my text"}),
        ("/v1/embeddings?key=my-text", {"input": "my text"}),
    ):
        client.post(path, json=body, headers=HEADERS)
        client.post(path, json=body, headers={"authorization": "Bearer my-text"})
    written = [str(vars(record)) for record in records]
    assert len(written) == 6
    assert not any(word in line for line in written for word in ("my text", "my-text", SECRET))


def test_a_client_cannot_forge_a_line(client: TestClient, records: list[logging.LogRecord]) -> None:
    client.get("/nothing%0AINFO%20forged", headers={"x-request-id": "a key=admin"})
    (record,) = records
    assert "\n" not in record.getMessage()
    assert "request_id='a key=admin'" in record.getMessage()
    client.get("/" + "x" * 5000)
    assert len(records[-1].getMessage()) < 500


def test_it_follows_a_change_of_the_settings(
    client: TestClient, service: EmbedService, records: list[logging.LogRecord]
) -> None:
    service.apply(IngressSettings())
    client.post("/v1/embeddings", json={"input": "a"}, headers=HEADERS)
    assert records == []
