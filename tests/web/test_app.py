import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from serve_app.config import IngressSettings
from serve_app.errors import Unavailable
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import CacheState, Tier
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

JSON = {"content-type": "application/json"}


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(lookup: FakeBackend) -> EmbedService:
    return EmbedService(SPEC, lookup, IngressSettings(max_body_bytes=100_000))


@pytest.fixture
def client(service: EmbedService) -> Iterator[TestClient]:
    with TestClient(create_app(Catalog([service])), raise_server_exceptions=False) as client:
        yield client


def test_the_header_lists_truncated_inputs(client: TestClient) -> None:
    texts = ["x" * 99, "a", "y" * 99, "z" * 99]
    reply = client.post("/v1/embeddings", json={"input": texts})
    assert reply.headers["x-truncated-inputs"] == "0,2-3"
    assert reply.json()["usage"]["prompt_tokens"] == 16 * 3 + 1


def test_server_timing_has_a_duration_for_each_stage(client: TestClient) -> None:
    header = client.post("/v1/embeddings", json={"input": "a"}).headers["server-timing"]
    assert re.sub(r"dur=\d+\.\d\d", "dur=_", header) == (
        "cache;dur=_, queue;dur=_, tokenize;dur=_, infer;dur=_, total;dur=_"
    )


@pytest.mark.parametrize(
    ("headers", "body", "cached"),
    [
        ({}, {}, True),
        ({}, {"use_cache": None}, True),
        ({}, {"use_cache": True}, True),
        ({}, {"use_cache": False}, False),
        ({"cache-control": "no-store"}, {}, False),
        ({"cache-control": "max-age=0, No-Store"}, {"use_cache": True}, False),
        ({"cache-control": "no-cache"}, {}, True),
    ],
)
def test_a_request_may_bypass_the_cache(
    client: TestClient,
    lookup: FakeBackend,
    headers: dict[str, str],
    body: dict[str, object],
    cached: bool,
) -> None:
    client.post("/v1/embeddings", json={"input": "a", **body}, headers=headers)
    assert lookup.groups[-1].use_cache == cached


def test_metrics_count_requests_by_status_and_texts_and_tokens(
    client: TestClient, service: EmbedService
) -> None:
    client.post("/v1/embeddings", json={"input": ["a", "bc"]})
    client.post("/v1/embeddings", json={"input": []})
    counted = {
        (metric.name, *tags): n for (metric, tags), n in service.meter.process.drain().items()
    }
    model = SPEC.name
    assert counted["embedserve_requests", "200", model] == 1
    assert counted["embedserve_requests", "400", model] == 1
    assert counted["embedserve_texts", model] == 2
    assert counted["embedserve_tokens", model] == 3


@pytest.mark.parametrize(
    ("texts", "priority", "lane"),
    [
        (8, None, "interactive"),
        (9, None, "bulk"),
        (9, "interactive", "interactive"),
        (1, "bulk", "bulk"),
    ],
)
def test_the_lane_is_the_header_s_or_follows_from_the_number_of_texts(
    client: TestClient, lookup: FakeBackend, texts: int, priority: str | None, lane: str
) -> None:
    headers = {} if priority is None else {"x-priority": priority}
    body = {"input": [f"text {i}" for i in range(texts)]}
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    assert lookup.groups[0].lane == lane


def test_health_follows_the_backend(client: TestClient, lookup: FakeBackend) -> None:
    lookup.error = Unavailable("All replicas are gone.")
    unhealthy = client.get("/health")
    assert (unhealthy.status_code, unhealthy.json()["reason"]) == (503, "All replicas are gone.")
    lookup.error = None
    healthy = client.get("/health")
    assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
    assert healthy.json()["cache"] == {"state": "up", "reason": None, "kind": "embedded"}


@pytest.mark.parametrize(("reported", "status"), [(True, "degraded"), (False, "ok")])
def test_health_without_the_cache(
    service: EmbedService, client: TestClient, lookup: FakeBackend, reported: bool, status: str
) -> None:
    service.apply(IngressSettings(health_reports_cache=reported))
    lookup.cache = CacheState("degraded", "It is full.", "redis")
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (200, status)
    assert reply.json()["cache"] == {"state": "degraded", "reason": "It is full.", "kind": "redis"}


BAD_BODIES: list[Any] = [
    pytest.param(b'{"input": "a", "use_cache": 1}', 400, "use_cache", "true", id="use_cache 1"),
    pytest.param(b"", 400, None, "valid JSON", id="no body"),
    pytest.param(b'{"input": "\xff"}', 400, None, "valid UTF-8", id="not UTF-8"),
    pytest.param(b'{"input": ["a", null]}', 400, "input", "Text 1 is not a string", id="a null"),
    pytest.param(b'{"input": [[1, "a"]]}', 400, "input", "Text 0 is not a string", id="mixed ids"),
    pytest.param(b'{"input": [true]}', 400, "input", "Text 0 is not a string", id="a bool"),
    pytest.param(
        b'{"input": [' + b'"a",' * 2048 + b'"a"]}', 400, "input", "at most 2048", id="2049 texts"
    ),
    pytest.param(b'{"input": "a", "dimensions": -1}', 400, "dimensions", "1 and 8", id="dims -1"),
    pytest.param(
        b'{"input": "a", "dimensions": true}', 400, "dimensions", "an integer", id="dims true"
    ),
    pytest.param(
        b'{"input": "a", "dimensions": 8.0}', 400, "dimensions", "an integer", id="dims float"
    ),
    pytest.param(
        b'{"input": "a", "encoding_format": 1}', 400, "encoding_format", "it was 1", id="encoding 1"
    ),
    pytest.param(b'{"input": "a", "user": 5}', 400, "user", "a string", id="user 5"),
    pytest.param(b'{"input": "a", "model": 5}', 400, "model", "a string", id="model 5"),
    pytest.param(rb'{"input": "\ud800"}', 400, None, "surrogate", id="lone surrogate"),
]


@pytest.mark.parametrize(("body", "status", "param", "message"), BAD_BODIES)
def test_an_invalid_body_gets_a_message_that_names_the_field(
    client: TestClient,
    lookup: FakeBackend,
    body: bytes,
    status: int,
    param: str | None,
    message: str,
) -> None:
    reply = client.post("/v1/embeddings", content=body, headers=JSON)
    assert reply.status_code == status
    error = envelope(reply)
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert lookup.groups == []


def envelope(reply: httpx2.Response) -> dict[str, Any]:
    """Returns the error in OpenAI's envelope; asserts that it has exactly its four fields."""
    body = reply.json()
    assert list(body) == ["error", "detail"]
    error: dict[str, Any] = body["error"]
    assert body["detail"] == error["message"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["code"], str)
    assert reply.headers["content-type"] == "application/json"
    return error


def test_a_content_type_may_have_a_charset(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers).is_success


async def test_requests_over_the_limit_are_rejected_immediately(lookup: FakeBackend) -> None:
    lookup.delay_s = 0.2
    service = EmbedService(SPEC, lookup, IngressSettings(max_concurrent_requests=2))
    transport = httpx2.ASGITransport(app=create_app(Catalog([service])))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        replies = await asyncio.gather(
            *(client.post("/v1/embeddings", json={"input": "a"}) for _ in range(5))
        )
        later = await client.post("/v1/embeddings", json={"input": "a"})
    assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429]
    assert all(r.headers["retry-after"] == "1" for r in replies if r.status_code == 429)
    assert later.status_code == 200


async def test_an_endless_body_is_rejected_as_soon_as_it_is_too_large(
    service: EmbedService,
) -> None:
    sent, sent_before_reply = 0, 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 10_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def record(message: Message) -> None:
            nonlocal sent_before_reply
            sent_before_reply = sent_before_reply or sent
            await send(message)

        await create_app(Catalog([service]))(scope, receive, record)

    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.post("/embed", content=endless(), headers=JSON)
    assert reply.status_code == 413
    assert reply.headers["connection"] == "close"
    assert sent_before_reply == 11  # of 100 000 bytes
    assert sent <= 100  # the rest is discarded, within a limit


async def test_a_client_that_disconnects_while_sending_is_not_counted_as_a_failure(
    service: EmbedService,
) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/embed", "headers": headers}
    scope |= {"query_string": b"", "server": ("test", 80), "scheme": "http"}
    await create_app(Catalog([service]))(scope, receive, send)
    assert sent[0]["status"] == 499
    assert service.meter.process.totals().requests == 0


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_cancelled_request_is_answered_unless_its_client_has_left(
    service: EmbedService, lookup: FakeBackend, *, has_left: bool
) -> None:
    lookup.delay_s = 60
    messages: list[Message] = [{"type": "http.request", "body": b'{"input": "a"}'}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/embeddings"}
    scope |= {"headers": [(b"content-type", b"application/json")], "query_string": b""}
    scope |= {"server": ("test", 80), "scheme": "http"}

    async def run() -> None:
        await create_app(Catalog([service]))(scope, receive, send)

    request = asyncio.create_task(run())
    async with asyncio.timeout(30):
        while not lookup.groups:
            await asyncio.sleep(0.001)
    if has_left:
        messages.append({"type": "http.disconnect"})
    request.cancel()
    if has_left:
        with pytest.raises(asyncio.CancelledError):
            await request
        assert not sent
        return
    await request
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["type"] == "server_error"


def test_totals_count_successes_and_failures(
    client: TestClient, service: EmbedService, lookup: FakeBackend
) -> None:
    lookup.tiers = [Tier.L1, Tier.COMPUTED]
    client.post("/v1/embeddings", json={"input": ["a", "bc", "a"]})
    client.post("/vertex", json={"instances": [{"inputs": ["a", "b"]}, {"inputs": ["c", "d"]}]})
    client.post("/decode", json={"ids": [97]})
    client.post("/v1/embeddings", json={"input": []})
    client.post("/embed", json=[])
    client.get("/health")
    client.get("/v1/models/gpt")
    lookup.error = Unavailable("gone")
    client.post("/embed", json={"inputs": "a"})
    lookup.error = cast(Unavailable, ZeroDivisionError())
    client.post("/embed", json={"inputs": "a"})
    totals = service.meter.process.totals()
    assert totals._replace(seconds=0) == (7, 4, 7, 4, 8, 0, 0, 0)
    assert 0 < totals.seconds < 60


def test_truncated_inputs_are_indexed_across_all_instances(client: TestClient) -> None:
    long = "x" * 99
    body = {"instances": [{"inputs": ["a", long]}, {"inputs": long}, {"inputs": "b"}]}
    assert client.post("/vertex", json=body).headers["x-truncated-inputs"] == "1-2"
    reply = client.post("/embed_all", json={"inputs": ["a", long]})
    assert reply.headers["x-truncated-inputs"] == "1"
