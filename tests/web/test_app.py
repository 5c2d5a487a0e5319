import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import EngineFailed, Overloaded, Unavailable
from serve_app.service import EmbedService
from serve_app.types import CacheState
from serve_app.web.app import cache_header, create_app, index_ranges
from tests.fakes import DIM, SPEC, FakeLookup, fake_vector

JSON = {"content-type": "application/json"}


@pytest.fixture
def lookup() -> FakeLookup:
    return FakeLookup()


@pytest.fixture
def service(lookup: FakeLookup) -> EmbedService:
    return EmbedService(SPEC, lookup, IngressSettings(max_body_bytes=100_000))


@pytest.fixture
def client(service: EmbedService) -> Iterator[TestClient]:
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def test_embeds(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"input": ["a", "b", "a"], "model": "fake"})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-embedding-space"] == SPEC.space_id
    assert "x-truncated-inputs" not in reply.headers
    got = np.array([item["embedding"] for item in reply.json()["data"]], dtype=np.float32)
    assert np.array_equal(got, np.stack([fake_vector(text) for text in "aba"]))


def test_tells_which_inputs_were_cut(client: TestClient) -> None:
    texts = ["x" * 99, "a", "y" * 99, "z" * 99]
    reply = client.post("/v1/embeddings", json={"input": texts})
    assert reply.headers["x-truncated-inputs"] == "0,2-3"
    assert reply.json()["usage"]["prompt_tokens"] == 16 * 3 + 1


def test_tells_where_the_time_went(client: TestClient) -> None:
    header = client.post("/v1/embeddings", json={"input": "a"}).headers["server-timing"]
    assert re.sub(r"dur=\d+\.\d\d", "dur=_", header) == (
        "cache;dur=_, queue;dur=_, tokenize;dur=_, infer;dur=_, total;dur=_"
    )


def test_tells_what_came_from_the_cache(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"input": ["a", "b"]})
    assert reply.headers["x-cache"] == "hits=0; misses=2"
    assert reply.json()["usage"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("tiers", "value"),
    [
        ([0, 0], "hits=0; misses=2"),
        ([1, 0, 1, 1], "hits=3; misses=1; tier=l1"),
        ([2], "hits=1; misses=0; tier=l2"),
        ([2, 1], "hits=2; misses=0; tier=l1,l2"),
    ],
)
def test_the_cache_header(tiers: list[int], value: str) -> None:
    assert cache_header(np.array(tiers, dtype=np.uint8)) == value


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
def test_a_client_may_do_without_the_cache(
    client: TestClient,
    lookup: FakeLookup,
    headers: dict[str, str],
    body: dict[str, object],
    cached: bool,
) -> None:
    client.post("/v1/embeddings", json={"input": "a", **body}, headers=headers)
    assert lookup.groups[-1].use_cache == cached


def test_counts_what_was_answered_and_how(client: TestClient, service: EmbedService) -> None:
    client.post("/v1/embeddings", json={"input": ["a", "bc"]})
    client.post("/v1/embeddings", json={"input": []})
    counted = {(metric.name, *tags): n for (metric, tags), n in service.meter.drain().items()}
    assert counted["embedserve_requests", "200"] == counted["embedserve_requests", "400"] == 1
    assert counted["embedserve_texts",] == 2
    assert counted["embedserve_tokens",] == 3
    assert 0 < counted["embedserve_stage_seconds", "total"] < 60


@pytest.mark.parametrize(
    ("texts", "priority", "lane"),
    [
        (8, None, "interactive"),
        (9, None, "bulk"),
        (9, "interactive", "interactive"),
        (1, "bulk", "bulk"),
    ],
)
def test_the_lane_is_what_the_client_says_or_follows_from_the_number_of_texts(
    client: TestClient, lookup: FakeLookup, texts: int, priority: str | None, lane: str
) -> None:
    headers = {} if priority is None else {"x-priority": priority}
    body = {"input": [f"text {i}" for i in range(texts)]}
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 200
    assert lookup.groups[0].lane == lane


def test_a_priority_that_does_not_exist_is_told(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"input": "a"}, headers={"x-priority": "high"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "x-priority"


def test_lists_the_model_under_all_its_names(client: TestClient) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["org/fake", "fake"]


def test_info(client: TestClient) -> None:
    info = client.get("/info").json()
    assert info["model"] == "org/fake"
    assert (info["dim"], info["max_tokens"], info["space"]) == (DIM, 16, SPEC.space_id)
    assert (info["engine"], info["device"], info["precision"]) == ("fake", "cpu", "fp32")


def test_health_is_the_engines(client: TestClient, lookup: FakeLookup) -> None:
    lookup.error = Unavailable("All replicas are gone.")
    sick = client.get("/health")
    assert (sick.status_code, sick.json()["reason"]) == (503, "All replicas are gone.")
    lookup.error = None
    well = client.get("/health")
    assert (well.status_code, well.json()["status"]) == (200, "ok")
    assert well.json()["cache"] == {"state": "up", "reason": None, "kind": "embedded"}


@pytest.mark.parametrize(
    ("cache", "status", "reason"),
    [
        (CacheState("off"), "ok", None),
        (CacheState("degraded", "It is full.", "redis"), "degraded", "It is full."),
        (Unavailable("gone"), "degraded", "CacheLookup doesn't answer."),
    ],
    ids=["off", "degraded", "unknown"],
)
def test_a_cache_that_is_gone_degrades_only(
    client: TestClient,
    lookup: FakeLookup,
    cache: CacheState | Unavailable,
    status: str,
    reason: str | None,
) -> None:
    lookup.cache = cache
    reply = client.get("/health")
    assert (reply.status_code, reply.json()["status"], reply.json()["reason"]) == (
        200,
        status,
        reason,
    )


BAD_BODIES: list[Any] = [
    pytest.param(b'{"input": "a", "use_cache": 1}', 400, "use_cache", "true", id="use_cache 1"),
    pytest.param(b"", 400, None, "valid JSON", id="no body"),
    pytest.param(b"{nonsense", 400, None, "valid JSON", id="not JSON"),
    pytest.param(b'{"input": "\xff"}', 400, None, "valid UTF-8", id="not UTF-8"),
    pytest.param(b'["a"]', 400, None, "JSON object", id="a list"),
    pytest.param(b"{}", 400, "input", "missing", id="no input"),
    pytest.param(b'{"input": null}', 400, "input", "missing", id="null input"),
    pytest.param(b'{"input": ""}', 400, "input", "empty", id="empty string"),
    pytest.param(b'{"input": []}', 400, "input", "empty", id="empty list"),
    pytest.param(b'{"input": ["a", ""]}', 400, "input", "Text 1 is empty", id="empty item"),
    pytest.param(b'{"input": {"text": "a"}}', 400, "input", "not dict", id="an object"),
    pytest.param(b'{"input": ["a", 7]}', 400, "input", "Text 1 is not a string", id="a number"),
    pytest.param(b'{"input": ["a", null]}', 400, "input", "Text 1 is not a string", id="a null"),
    pytest.param(b'{"input": [101, 7592]}', 400, "input", "token ids", id="token ids"),
    pytest.param(b'{"input": [[1, 2], [3]]}', 400, "input", "token ids", id="lists of token ids"),
    pytest.param(
        b'{"input": [' + b'"a",' * 2048 + b'"a"]}', 400, "input", "at most 2048", id="2049 texts"
    ),
    pytest.param(b'{"input": "a", "dimensions": 0}', 400, "dimensions", "1 and 8", id="dims 0"),
    pytest.param(b'{"input": "a", "dimensions": -1}', 400, "dimensions", "1 and 8", id="dims -1"),
    pytest.param(b'{"input": "a", "dimensions": 9}', 400, "dimensions", "1 and 8", id="dims 9"),
    pytest.param(
        b'{"input": "a", "dimensions": "8"}', 400, "dimensions", "an integer", id="dims string"
    ),
    pytest.param(
        b'{"input": "a", "dimensions": true}', 400, "dimensions", "an integer", id="dims true"
    ),
    pytest.param(
        b'{"input": "a", "dimensions": 8.0}', 400, "dimensions", "an integer", id="dims float"
    ),
    pytest.param(
        b'{"input": "a", "encoding_format": "hex"}',
        400,
        "encoding_format",
        "'float', 'base64'",
        id="unknown encoding",
    ),
    pytest.param(
        b'{"input": "a", "encoding_format": 1}', 400, "encoding_format", "it was 1", id="encoding 1"
    ),
    pytest.param(b'{"input": "a", "user": 5}', 400, "user", "a string", id="user 5"),
    pytest.param(b'{"input": "a", "model": 5}', 400, "model", "a string", id="model 5"),
    pytest.param(
        b'{"input": "a", "model": "gpt"}', 404, "model", "isn't served here", id="unknown model"
    ),
    pytest.param(rb'{"input": "a\u0000b"}', 400, "input", "NUL", id="NUL"),
    pytest.param(rb'{"input": "\ud800"}', 400, None, "surrogate", id="lone surrogate"),
    pytest.param(b'{"input": "' + b"a" * 100_000 + b'"}', 413, None, "100000 bytes", id="too big"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), BAD_BODIES)
def test_bad_input_is_told_how_to_mend_it(
    client: TestClient, lookup: FakeLookup, body: bytes, status: int, param: str | None, words: str
) -> None:
    reply = client.post("/v1/embeddings", content=body, headers=JSON)
    assert reply.status_code == status
    error = envelope(reply)
    assert words in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert lookup.groups == []


def envelope(reply: httpx2.Response) -> dict[str, Any]:
    """The error in OpenAI's envelope, which has these four fields and no others."""
    body = reply.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["code"], str)
    assert reply.headers["content-type"] == "application/json"
    return error


def test_the_codes_clients_look_for(client: TestClient) -> None:
    reply = client.post("/v1/embeddings", json={"input": "a", "model": "gpt"})
    assert envelope(reply)["code"] == "model_not_found"


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type(client: TestClient, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    reply = client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers)
    assert reply.status_code == 415
    assert "Content-Type: application/json" in envelope(reply)["message"]


def test_a_charset_behind_the_content_type_is_fine(client: TestClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/embeddings", content=b'{"input": "a"}', headers=headers).is_success


def test_the_wrong_method(client: TestClient) -> None:
    reply = client.get("/v1/embeddings")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert "takes POST" in envelope(reply)["message"]


def test_an_unknown_path(client: TestClient) -> None:
    reply = client.post("/v2/nothing", json={})
    assert reply.status_code == 404
    assert "/v2/nothing" in envelope(reply)["message"]


def test_more_load_than_the_engine_takes(client: TestClient, lookup: FakeLookup) -> None:
    lookup.error = Overloaded("Full.", 7)
    reply = client.post("/v1/embeddings", json={"input": "a"})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert envelope(reply)["type"] == "rate_limit_error"


async def test_more_requests_than_fit_are_refused_at_once(lookup: FakeLookup) -> None:
    lookup.delay_s = 0.2
    service = EmbedService(SPEC, lookup, IngressSettings(max_concurrent_requests=2))
    transport = httpx2.ASGITransport(app=create_app(service))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        replies = await asyncio.gather(
            *(client.post("/v1/embeddings", json={"input": "a"}) for _ in range(5))
        )
        later = await client.post("/v1/embeddings", json={"input": "a"})
    assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429]
    assert all(r.headers["retry-after"] == "1" for r in replies if r.status_code == 429)
    assert later.status_code == 200


def test_a_failing_engine_is_a_500_in_the_envelope(client: TestClient, lookup: FakeLookup) -> None:
    lookup.error = EngineFailed("The model failed.")
    reply = client.post("/v1/embeddings", json={"input": "a"})
    assert reply.status_code == 500
    assert envelope(reply)["code"] == "engine_failed"


def test_a_bug_is_a_500_that_tells_nothing_of_the_inside(
    client: TestClient, service: EmbedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "embed", lambda job: 1 / 0)
    reply = client.post("/v1/embeddings", json={"input": "a"})
    assert reply.status_code == 500
    assert "division" not in envelope(reply)["message"]


@pytest.mark.parametrize(
    ("flags", "ranges"),
    [([], ""), ([0, 0], ""), ([1], "0"), ([1, 1, 0, 1], "0-1,3"), ([0, 1, 1, 1], "1-3")],
)
def test_index_ranges(flags: list[int], ranges: str) -> None:
    assert index_ranges(np.array(flags, dtype=np.bool_)) == ranges
