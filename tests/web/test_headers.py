"""What requests are called, through the whole application."""

import logging
from collections.abc import Iterator
from typing import cast

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import EmbedServeError
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.headers import trace
from tests.fakes import SPEC, FakeBackend

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(EmbedService(SPEC, lookup, IngressSettings()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


ASKS = [
    ("POST", "/v1/embeddings", b'{"input": "a"}', 200),
    ("POST", "/embed", b'{"inputs": 1}', 422),
    ("POST", "/tokenize", b'{"inputs": "a"}', 200),
    ("POST", "/v1/embeddings", b"{", 400),
    ("PUT", "/v1/embeddings", b"", 405),
    ("GET", "/nowhere", b"", 404),
    ("GET", "/v1/models", b"", 200),
    ("GET", "/v1/models/gpt", b"", 404),
    ("GET", "/health", b"", 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ASKS)
def test_every_reply_names_its_request(
    client: TestClient, method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"content-type": "application/json"}
    traced = headers | {"traceparent": PARENT}
    reply = client.request(method, path, content=body, headers=traced)
    assert reply.status_code == status
    assert reply.headers["traceparent"] == PARENT
    assert "traceparent" not in client.request(method, path, content=body, headers=headers).headers


@pytest.mark.parametrize("parent", [PARENT, "cc" + PARENT[2:], "cc" + PARENT[2:] + "-more"])
def test_a_traces_context_comes_back(parent: str) -> None:
    assert trace({"traceparent": parent})["traceparent"] == parent


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "garbage",
        PARENT[:-1],
        PARENT + "0",
        PARENT.upper(),
        "ff" + PARENT[2:],
        "00-" + "0" * 32 + PARENT[35:],
        PARENT[:36] + "0" * 16 + "-01",
        " " + PARENT,
    ],
)
def test_what_is_no_traces_context_does_not(parent: str) -> None:
    assert "traceparent" not in trace({"traceparent": parent})


def test_a_repeated_header_is_one_list(client: TestClient, lookup: FakeBackend) -> None:
    headers = [("cache-control", "no-store"), ("cache-control", "no-transform")]
    assert client.post("/v1/embeddings", json={"input": "a"}, headers=headers).is_success
    assert [group.use_cache for group in lookup.groups] == [False]


def test_the_log_names_the_request_that_failed_by_surprise(
    client: TestClient, lookup: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    lookup.error = cast(EmbedServeError, ZeroDivisionError("secret"))
    with caplog.at_level(logging.ERROR, "serve_app.web.handler"):
        own = client.post("/embed", json={"inputs": "a"}, headers={"x-request-id": "r-1"})
    assert own.status_code == 500
    assert "secret" not in own.text
    told = [record.getMessage() for record in caplog.records]
    assert "r-1" in told[0]
    assert all(record.exc_info for record in caplog.records)
