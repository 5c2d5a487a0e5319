"""API keys in each dialect: missing, wrong, valid, and over their limits."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.metrics import KEY_REQUESTS, KEY_TOKENS
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Tier
from serve_app.web.app import create_app
from serve_app.web.dialect import all_views, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import object_example
from tests.fakes import SPEC, FakeBackend

SECRETS = {
    name: f"es-{name}-0123456789" for name in ("all", "other", "few", "small", "one", "bulk")
}
KEYS = (
    ApiKey(name="all", sha256=hashlib.sha256(SECRETS["all"].encode()).hexdigest()),
    ApiKey(
        name="other",
        sha256=hashlib.sha256(SECRETS["other"].encode()).hexdigest(),
        models=("org/another",),
    ),
    ApiKey(
        name="few",
        sha256=hashlib.sha256(SECRETS["few"].encode()).hexdigest(),
        requests_per_minute=2,
    ),
    ApiKey(
        name="small",
        sha256=hashlib.sha256(SECRETS["small"].encode()).hexdigest(),
        tokens_per_minute=20,
    ),
    ApiKey(
        name="one",
        sha256=hashlib.sha256(SECRETS["one"].encode()).hexdigest(),
        models=(SPEC.name,),
        requests_per_minute=600,
        tokens_per_minute=60_000,
    ),
    ApiKey(name="bulk", sha256=hashlib.sha256(SECRETS["bulk"].encode()).hexdigest(), lane="bulk"),
)

#: A valid request of each dialect.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": "a"},
    "/embed": {"inputs": "a"},
    "/v2/embed": {"texts": ["a"], "input_type": "clustering"},
    "/embeddings": {"input": "a"},
    "/embed/text": {"text": "a"},
}


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(lookup: FakeBackend) -> EmbedService:
    return EmbedService(SPEC, lookup, IngressSettings())


@pytest.fixture
async def access(service: EmbedService) -> Entrance:
    access = Entrance(MemoryQuotaStore(), service.meter.process)
    access.apply(AccessSettings(keys=KEYS))
    return access


@pytest.fixture
def client(service: EmbedService, access: Entrance) -> Iterator[TestClient]:
    with TestClient(
        create_app(Catalog([service]), access), raise_server_exceptions=False
    ) as client:
        yield client


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRETS[name]}"}


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer es-wrong"}], ids=["none", "wrong"]
)
def test_a_missing_or_wrong_key_in_each_dialect(
    client: TestClient, lookup: FakeBackend, headers: dict[str, str]
) -> None:
    replies = {path: client.post(path, json=b, headers=headers) for path, b in BODIES.items()}
    assert {reply.status_code for reply in replies.values()} == {401}
    error = replies["/v1/embeddings"].json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "API key" in error["message"]
    assert replies["/embed"].content == b""
    assert "API key" in replies["/v2/embed"].json()["message"]
    assert replies["/embeddings"].json() == {"detail": "Unauthorized"}
    assert replies["/embeddings"].headers["www-authenticate"] == "Bearer"
    challenge = 'Bearer error="invalid_token"' if headers else "Bearer"
    challenges = {
        path: reply.headers["www-authenticate"]
        for path, reply in replies.items()
        if path != "/embeddings"
    }
    assert set(challenges.values()) == {challenge}
    assert "API key" in replies["/embed/text"].json()["detail"]
    assert "es-wrong" not in "".join(reply.text for reply in replies.values())
    assert lookup.groups == []


@pytest.mark.parametrize("path", BODIES)
def test_a_valid_key_in_each_dialect(client: TestClient, path: str) -> None:
    assert client.post(path, json=BODIES[path], headers=bearer("all")).status_code == 200
    for header in ("x-api-key", "api-key"):
        as_header = {header: SECRETS["all"]}
        assert client.post(path, json=BODIES[path], headers=as_header).status_code == 200


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
def test_a_key_that_proxies_repeat_in_one_header(client: TestClient, name: str) -> None:
    prefix = "Bearer " if name == "authorization" else ""
    for second, status in (("all", 200), ("other", 401)):
        headers = {name: ", ".join(prefix + SECRETS[key] for key in ("all", second))}
        assert client.post("/embed", json=BODIES["/embed"], headers=headers).status_code == status


def test_a_key_for_another_model_in_each_dialect(client: TestClient, lookup: FakeBackend) -> None:
    replies = {
        path: client.post(path, json=b, headers=bearer("other")) for path, b in BODIES.items()
    }
    assert {reply.status_code for reply in replies.values()} == {403}
    assert replies["/v1/embeddings"].json()["error"]["code"] == "model_not_allowed"
    assert replies["/embed"].json()["error_type"] == "Validation"
    assert all("may not use the model" in reply.text for reply in replies.values())
    assert lookup.groups == []


@pytest.mark.parametrize("path", BODIES)
def test_a_key_over_its_quota_in_each_dialect(client: TestClient, path: str) -> None:
    replies = [client.post(path, json=BODIES[path], headers=bearer("few")) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert "requests" in replies[2].text
    assert client.post(path, json=BODIES[path], headers=bearer("all")).status_code == 200


def test_the_quota_is_charged_the_counted_tokens_not_the_estimate(client: TestClient) -> None:
    # A token of the fake backend is one letter, so that the estimate is too low.
    first = client.post("/v1/embeddings", json={"input": "x" * 16}, headers=bearer("small"))
    assert first.headers["x-ratelimit-limit-tokens"] == "20"
    second = client.post("/v1/embeddings", json={"input": "y" * 16}, headers=bearer("small"))
    third = client.post("/v1/embeddings", json={"input": "z"}, headers=bearer("small"))
    assert [first.status_code, second.status_code, third.status_code] == [200, 429, 200]
    assert second.json()["error"]["type"] == "rate_limit_error"


def test_token_vectors_are_charged(client: TestClient) -> None:
    # The first reply only knows the estimate; the second one knows the first one's count.
    for text, remaining in (("x" * 16, 16), ("y", 3)):
        reply = client.post("/embed_all", json={"inputs": text}, headers=bearer("small"))
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) <= remaining


def test_rate_limits_are_reported_in_openai_s_headers(client: TestClient) -> None:
    headers = client.post("/v1/embeddings", json={"input": "a"}, headers=bearer("one")).headers
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "599"
    assert headers["x-ratelimit-reset-requests"].endswith("ms")
    assert headers["x-ratelimit-limit-tokens"] == "60000"
    unlimited = client.post("/v1/embeddings", json={"input": "a"}, headers=bearer("all")).headers
    assert not [name for name in unlimited if name.startswith("x-ratelimit")]


def test_a_key_s_lane_overrides_the_header(client: TestClient, lookup: FakeBackend) -> None:
    headers = bearer("bulk") | {"x-priority": "interactive"}
    for path, body in BODIES.items():
        client.post(path, json=body, headers=headers)
    client.post("/vertex", json={"instances": [{"inputs": "a"}]}, headers=headers)
    assert [group.lane for group in lookup.groups] == ["bulk"] * 6


def test_failed_requests_are_charged_no_tokens(client: TestClient, service: EmbedService) -> None:
    for texts in ([""], ["\x00" * 3], ["a", 7]):
        client.post("/v1/embeddings", json={"input": texts}, headers=bearer("small"))
    reply = client.post("/v1/embeddings", json={"input": "a"}, headers=bearer("small"))
    assert reply.headers["x-ratelimit-remaining-tokens"] == "19"
    counts = service.meter.process.drain()
    assert counts[KEY_TOKENS, ("small", SPEC.name)] == 1
    assert counts[KEY_REQUESTS, ("small", "admitted", SPEC.name)] == 4


def test_all_routes_but_public_ones_need_a_key(client: TestClient) -> None:
    dialects = load_dialects()
    for _, view in all_views(dialects):
        path = re.sub("{.*}", SPEC.name, view.path)
        body = object_example(view.fields) if view.fields else None
        query = {"once": "true"} if view.has_stream else None
        reply = client.request(view.method, path, json=body, params=query)
        assert (reply.status_code == 401) == (not view.public), path
        assert ("www-authenticate" in reply.headers) == (not view.public), path
        reply = client.request(view.method, path, json=body, params=query, headers=bearer("all"))
        assert reply.status_code == 200, path
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 200
    assert client.get("/openapi.json").json()["security"] == [
        {"bearer": []},
        {"key": []},
        {"azure": []},
    ]
    for path, candidates in endpoints_by_path(dialects).items():
        for _, endpoint in candidates:
            assert client.post(path, json=object_example(endpoint.fields)).status_code == 401, path


async def test_a_client_without_a_key_is_rejected_before_its_body_arrives(
    service: EmbedService, access: Entrance
) -> None:
    rejected = asyncio.Event()
    chunks = 0

    async def receive() -> Message:
        nonlocal chunks
        chunks += 1
        if chunks > 1:
            await rejected.wait()
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 401
            rejected.set()

    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
    scope |= {"headers": headers, "query_string": b"", "server": ("test", 80), "scheme": "http"}
    async with asyncio.timeout(30):
        await create_app(Catalog([service]), access)(scope, receive, send)
    assert rejected.is_set()
    assert chunks < 100  # the body is endless; what is discarded has a limit


def test_keys_change_without_a_restart(client: TestClient, access: Entrance) -> None:
    assert embed(client, "all").status_code == 200
    access.apply(AccessSettings(keys=KEYS[1:]))
    assert embed(client, "all").status_code == 401


def embed(client: TestClient, name: str) -> httpx2.Response:
    return client.post("/v1/embeddings", json={"input": "a"}, headers=bearer(name))


def test_no_key_is_in_any_log_line(
    client: TestClient, service: EmbedService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in SECRETS:
        for _ in range(3):
            embed(client, name)
    service.run = None  # type: ignore[method-assign, assignment]
    assert embed(client, "all").status_code == 500
    client.post("/v1/embeddings", content=b"{", headers=bearer("all"))
    assert caplog.text
    assert not [secret for secret in SECRETS.values() if secret in caplog.text]


def test_cached_texts_are_charged(client: TestClient, lookup: FakeBackend) -> None:
    lookup.tiers = [Tier.L1]
    reply = client.post("/v1/embeddings", json={"input": "x" * 12}, headers=bearer("small"))
    again = client.post("/v1/embeddings", json={"input": "x" * 12}, headers=bearer("small"))
    assert reply.json()["usage"]["cached_tokens"] == 12
    assert int(again.headers["x-ratelimit-remaining-tokens"]) <= 5
