"""CORS: scripts of the allowed origins may send requests from browsers, others may not."""

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import Overloaded
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

ALLOWED, OTHER = "https://app.example", "https://evil.example"
ALLOW_ORIGIN = "access-control-allow-origin"


def client_of(*origins: str, lookup: FakeBackend | None = None) -> TestClient:
    service = EmbedService(SPEC, lookup or FakeBackend(), IngressSettings())
    return TestClient(
        create_app(Catalog([service]), cors_origins=origins), raise_server_exceptions=False
    )


def preflight(client: TestClient, origin: str, method: str = "POST") -> dict[str, str]:
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type, x-priority",
    }
    reply = client.options("/v1/embeddings", headers=headers)
    return {"status": str(reply.status_code), **reply.headers}


def test_an_allowed_origin_may_send_a_key() -> None:
    response = preflight(client_of(ALLOWED), ALLOWED)
    assert (response["status"], response[ALLOW_ORIGIN]) == ("200", ALLOWED)
    assert "POST" in response["access-control-allow-methods"]
    for header in ("authorization", "content-type", "x-priority"):
        assert header in response["access-control-allow-headers"]


def test_another_origin_is_rejected() -> None:
    client = client_of(ALLOWED)
    response = preflight(client, OTHER)
    assert (response["status"], response.get(ALLOW_ORIGIN)) == ("400", None)
    reply = client.post("/v1/embeddings", json={"input": "a"}, headers={"origin": OTHER})
    assert ALLOW_ORIGIN not in reply.headers


def test_another_method_is_rejected() -> None:
    assert preflight(client_of(ALLOWED), ALLOWED, "DELETE")["status"] == "400"


def test_scripts_may_read_our_response_headers() -> None:
    client = client_of(ALLOWED)
    headers = {"origin": ALLOWED, "accept": "application/octet-stream"}
    reply = client.post("/v1/embeddings", json={"input": "x" * 99}, headers=headers)
    assert reply.headers[ALLOW_ORIGIN] == ALLOWED
    exposed = set(reply.headers["access-control-expose-headers"].split(", "))
    custom = {name for name in reply.headers if name.startswith("x-")}
    assert custom
    assert custom | {"server-timing", "retry-after"} <= exposed


def test_scripts_may_read_errors() -> None:
    lookup = FakeBackend()
    lookup.error = Overloaded("Full.", 7)
    reply = client_of(ALLOWED, lookup=lookup).post(
        "/embed", json={"inputs": "a"}, headers={"origin": ALLOWED}
    )
    assert (reply.status_code, reply.headers[ALLOW_ORIGIN]) == (429, ALLOWED)


def test_a_star_allows_every_origin() -> None:
    assert preflight(client_of("*"), OTHER)[ALLOW_ORIGIN] == "*"


@pytest.mark.parametrize("origin", [ALLOWED, OTHER])
def test_cors_is_off_by_default(origin: str) -> None:
    client = client_of()
    assert preflight(client, origin)["status"] == "405"
    reply = client.get("/health", headers={"origin": origin})
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("pattern", "origin", "allowed"),
    [
        ("https://*.example.com", "https://app.example.com", True),
        ("https://*.example.com", "https://a.b.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://app.example.com.evil.example", False),
        ("https://*.example.com", "https://evilexample.com", False),
        ("https://*.example.com", "http://app.example.com", False),
        ("chrome-extension://*", "chrome-extension://abcdefghijklmnop", True),
        ("http://localhost:*", "http://localhost:3000", True),
        ("http://localhost:*", "http://localhost.evil.example", False),
    ],
)
def test_origins_are_matched_by_patterns(pattern: str, origin: str, allowed: bool) -> None:
    client = client_of(ALLOWED, pattern)
    response = preflight(client, origin)
    assert response.get(ALLOW_ORIGIN) == (origin if allowed else None)
    assert preflight(client, ALLOWED)[ALLOW_ORIGIN] == ALLOWED


def test_a_preflight_may_ask_for_private_network_access() -> None:
    headers = {
        "origin": ALLOWED,
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    reply = client_of(ALLOWED).options("/v1/embeddings", headers=headers)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-private-network"] == "true"
