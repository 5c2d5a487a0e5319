"""Scripts in browsers: only those of the origins that are named may ask."""

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import Overloaded
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

OURS, THEIRS = "https://app.example", "https://evil.example"
ALLOWED = "access-control-allow-origin"


def client_of(*origins: str, lookup: FakeBackend | None = None) -> TestClient:
    service = EmbedService(SPEC, lookup or FakeBackend(), IngressSettings())
    return TestClient(create_app(service, cors_origins=origins), raise_server_exceptions=False)


def preflight(client: TestClient, origin: str, method: str = "POST") -> dict[str, str]:
    asked = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type, x-priority",
    }
    reply = client.options("/v1/embeddings", headers=asked)
    return {"status": str(reply.status_code), **reply.headers}


def test_a_named_origin_may_ask_with_a_key() -> None:
    told = preflight(client_of(OURS), OURS)
    assert (told["status"], told[ALLOWED]) == ("200", OURS)
    assert "POST" in told["access-control-allow-methods"]
    for header in ("authorization", "content-type", "x-priority"):
        assert header in told["access-control-allow-headers"]


def test_another_origin_may_not() -> None:
    client = client_of(OURS)
    told = preflight(client, THEIRS)
    assert (told["status"], told.get(ALLOWED)) == ("400", None)
    reply = client.post("/v1/embeddings", json={"input": "a"}, headers={"origin": THEIRS})
    assert ALLOWED not in reply.headers


def test_another_method_may_not() -> None:
    assert preflight(client_of(OURS), OURS, "DELETE")["status"] == "400"


def test_what_a_script_may_read_of_a_reply() -> None:
    client = client_of(OURS)
    headers = {"origin": OURS, "accept": "application/octet-stream"}
    reply = client.post("/v1/embeddings", json={"input": "x" * 99}, headers=headers)
    assert reply.headers[ALLOWED] == OURS
    exposed = set(reply.headers["access-control-expose-headers"].split(", "))
    own = {name for name in reply.headers if name.startswith("x-")}
    assert own
    assert own | {"server-timing", "retry-after"} <= exposed


def test_an_error_can_be_read_too() -> None:
    lookup = FakeBackend()
    lookup.error = Overloaded("Full.", 7)
    reply = client_of(OURS, lookup=lookup).post(
        "/embed", json={"inputs": "a"}, headers={"origin": OURS}
    )
    assert (reply.status_code, reply.headers[ALLOWED]) == (429, OURS)


def test_every_origin_where_that_is_asked_for() -> None:
    assert preflight(client_of("*"), THEIRS)[ALLOWED] == "*"


@pytest.mark.parametrize("origin", [OURS, THEIRS])
def test_off_unless_asked_for(origin: str) -> None:
    client = client_of()
    assert preflight(client, origin)["status"] == "405"
    reply = client.get("/health", headers={"origin": origin})
    assert not [name for name in reply.headers if name.startswith("access-control")]
