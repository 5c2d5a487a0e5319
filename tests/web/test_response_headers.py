"""Response headers: their values, and the trace context in every reply of the application."""

import logging
from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import EmbedServeError
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.response_headers import cache_summary, index_ranges, trace_headers
from tests.fakes import SPEC, FakeBackend

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(SPEC, backend, IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


REQUESTS = [
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


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
def test_every_reply_echoes_the_traceparent(
    client: TestClient, method: str, path: str, body: bytes, status: int
) -> None:
    headers = {"content-type": "application/json"}
    traced = headers | {"traceparent": PARENT}
    reply = client.request(method, path, content=body, headers=traced)
    assert reply.status_code == status
    assert reply.headers["traceparent"] == PARENT
    assert "traceparent" not in client.request(method, path, content=body, headers=headers).headers


@pytest.mark.parametrize("parent", [PARENT, "cc" + PARENT[2:], "cc" + PARENT[2:] + "-more"])
def test_a_valid_traceparent_is_echoed(parent: str) -> None:
    assert trace_headers({"traceparent": parent}) == {"traceparent": parent}


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
def test_a_malformed_traceparent_is_dropped(parent: str) -> None:
    assert trace_headers({"traceparent": parent}) == {}


def test_the_log_of_an_unexpected_error_has_the_request_id(
    client: TestClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.error = cast(EmbedServeError, ZeroDivisionError("secret"))
    with caplog.at_level(logging.ERROR, "serve_app.web.handler"):
        reply = client.post("/embed", json={"inputs": "a"}, headers={"x-request-id": "r-1"})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "r-1" in caplog.records[0].getMessage()
    assert all(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("tiers", "value"),
    [
        ([0, 0], "hits=0; misses=2"),
        ([1, 0, 1, 1], "hits=3; misses=1; tier=l1"),
        ([2], "hits=1; misses=0; tier=l2"),
        ([2, 1], "hits=2; misses=0; tier=l1,l2"),
        ([0, 3, 1], "hits=2; misses=1; tier=l1,joined"),
    ],
)
def test_the_cache_summary(tiers: list[int], value: str) -> None:
    assert cache_summary(np.array(tiers, dtype=np.uint8)) == value


@pytest.mark.parametrize(
    ("flags", "ranges"),
    [([], ""), ([0, 0], ""), ([1], "0"), ([1, 1, 0, 1], "0-1,3"), ([0, 1, 1, 1], "1-3")],
)
def test_index_ranges(flags: list[bool], ranges: str) -> None:
    assert index_ranges(flags) == ranges
