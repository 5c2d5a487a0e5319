"""Every dialect through the whole application: what its clients send, and what they get."""

import base64
import json
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import EmbedServeError, EngineFailed, Overloaded, Unavailable
from serve_app.service import EmbedService
from serve_app.types import Float32
from serve_app.web.app import create_app
from serve_app.web.dialects import endpoints
from tests.fakes import DIM, SPEC, FakeLookup, fake_vector

LONG = "x" * 99


@pytest.fixture
def lookup() -> FakeLookup:
    return FakeLookup()


@pytest.fixture
def client(lookup: FakeLookup) -> Iterator[TestClient]:
    app = create_app(EmbedService(SPEC, lookup, IngressSettings()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, **body: object) -> httpx2.Response:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply


def array(vectors: object) -> Float32:
    return np.array(vectors, dtype=np.float32)


def test_every_route_gives_the_same_vector(client: TestClient) -> None:
    def cohere(**body: Any) -> Any:
        asked = {"model": "fake", "input_type": "clustering", "texts": ["a"], **body}
        return post(client, "/v2/embed", **asked).json()["embeddings"]

    openai = post(client, "/v1/embeddings", input="a", encoding_format="base64").json()
    given = [
        post(client, "/v1/embeddings", input=["a"]).json()["data"][0]["embedding"],
        np.frombuffer(base64.b64decode(openai["data"][0]["embedding"]), np.float32),
        post(client, "/embeddings", input=" a ").json()["data"][0]["embedding"],
        post(client, "/embed", inputs="a", normalize=False).json()[0],
        post(client, "/embed", texts=["a"], normalize=False).json()["vectors"][0],
        cohere()["float"][0],
        np.frombuffer(base64.b64decode(cohere(embedding_types=["base64"])["base64"][0]), "<f4"),
        cohere(texts=None, inputs=[{"content": [{"type": "text", "text": "a"}]}])["float"][0],
        post(client, "/embed/text", text="a").json()["embedding"],
        post(client, "/embed/batch", texts=["a", ""]).json()["embeddings"][0],
    ]
    assert {array(vector).tobytes() for vector in given} == {fake_vector("a").tobytes()}


def test_queries_get_the_models_prompt(client: TestClient) -> None:
    given = [
        post(client, "/v1/embeddings", input="a", input_type="query").json()["data"][0][
            "embedding"
        ],
        post(client, "/embed", inputs=["a"], prompt_name="query", normalize=False).json()[0],
        post(client, "/v2/embed", model="fake", input_type="search_query", texts=["a"]).json()[
            "embeddings"
        ]["float"][0],
        post(client, "/embed/query", query="a").json()["embedding"],
    ]
    assert {array(vector).tobytes() for vector in given} == {fake_vector("query: a").tobytes()}


def test_tei_embed(client: TestClient) -> None:
    reply = post(client, "/embed", inputs=["a", "b"], dimensions=3, truncate=None)
    vectors = array(reply.json())
    assert vectors.shape == (2, 3)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    for name in ("total", "tokenization", "queue", "inference", "compute"):
        assert reply.headers[f"x-{name}-time"].isdecimal()
    assert reply.headers["x-compute-tokens"] == "2"


def test_tei_similarity(client: TestClient) -> None:
    body = {"source_sentence": "a", "sentences": ["a", "b"]}
    cosines = post(client, "/similarity", inputs=body).json()
    expected = np.stack([fake_vector("a"), fake_vector("b")]) @ fake_vector("a")
    assert np.allclose(cosines, expected, atol=1e-6)


def test_cohere_embed(client: TestClient) -> None:
    reply = post(
        client,
        "/v2/embed",
        model="fake",
        input_type="search_document",
        texts=["a", "bc"],
        embedding_types=["float", "binary", "ubinary"],
        output_dimension=8,
    ).json()
    assert reply["response_type"] == "embeddings_by_type"
    assert reply["texts"] == ["a", "bc"]
    assert reply["meta"]["billed_units"] == {"input_tokens": 3}
    assert {len(vectors) for vectors in reply["embeddings"].values()} == {2}
    unsigned = np.packbits(array(reply["embeddings"]["float"]) > 0, axis=1)
    assert reply["embeddings"]["ubinary"] == unsigned.tolist()
    assert reply["embeddings"]["binary"] == (unsigned.astype(int) - 128).tolist()


def test_cohere_priority_is_the_lane(client: TestClient, lookup: FakeLookup) -> None:
    for priority in (0, 5):
        body = {"model": "fake", "input_type": "clustering", "texts": ["a"]}
        post(client, "/v2/embed", **body, priority=priority)
    assert [group.lane for group in lookup.groups] == ["interactive", "bulk"]


def test_native_embed(client: TestClient, lookup: FakeLookup) -> None:
    one = post(client, "/embed/text", text="a", model="fake", use_cache=False).json()
    assert not lookup.groups[-1].use_cache
    assert {**one, "embedding": None} == {
        "embedding": None,
        "dimension": DIM,
        "model": SPEC.name,
        "cached": False,
        "cost": 0.0,
    }
    batch = post(client, "/embed/batch", texts=["a", "", "b"], batch_size=1).json()
    assert (batch["total_embeddings"], batch["cached_count"], batch["total_cost"]) == (2, 0, 0.0)
    assert client.get("/embed/models").json() == {
        "models": ["org/fake", "fake"],
        "default": "org/fake",
    }


def test_infinity_embeddings(client: TestClient) -> None:
    reply = post(client, "/embeddings", input=["a"], model="default/not-specified", dimensions=0)
    assert reply.json()["id"].startswith("infinity-")
    assert reply.json()["created"] > 1_700_000_000
    (first, alias) = client.get("/models").json()["data"]
    assert (first["id"], alias["id"], first["capabilities"]) == ("org/fake", "fake", ["embed"])
    wrong = client.post("/embeddings", json={"input": "a", "model": "x"})
    assert wrong.status_code == wrong.json()["error"]["code"] == 404


def test_one_model_by_its_name(client: TestClient) -> None:
    assert client.get("/v1/models/org/fake").json()["id"] == "org/fake"
    missing = client.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_health_in_each_dialect(client: TestClient, lookup: FakeLookup) -> None:
    assert client.get("/health").json()["dim"] == DIM
    assert client.get("/health").json()["device"] == "cpu"
    assert client.get("/ping").status_code == 200
    assert client.get("/v1/health/ready").json() == {
        "object": "health.response",
        "message": "ready",
        "ready": True,
    }
    assert client.get("/embed/health").json() == {
        "status": "healthy",
        "service": "embedserve",
        "default_model": "org/fake",
        "caching_enabled": True,
        "models_loaded": ["org/fake"],
    }


def test_health_of_a_sick_service_in_each_dialect(client: TestClient, lookup: FakeLookup) -> None:
    lookup.error = Unavailable("gone")
    statuses = {
        path: client.get(path).status_code
        for path in ("/health", "/ping", "/v1/health/ready", "/v1/health/live", "/embed/health")
    }
    assert statuses.pop("/v1/health/live") == 200
    assert set(statuses.values()) == {503}


ERRORS: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("/embed", {"inputs": ""}, 400, {"error_type": "Empty"}),
    ("/embed", {"inputs": []}, 400, {"error_type": "Empty"}),
    ("/embed", {}, 400, {"error_type": "Empty"}),
    ("/embed", {"inputs": 1}, 422, {"error_type": "Validation"}),
    ("/embed", {"inputs": "a", "dimensions": 99}, 422, {"error_type": "Validation"}),
    ("/embed", {"inputs": LONG, "truncate": False}, 422, {"error_type": "Validation"}),
    ("/embed", {"inputs": "a", "prompt_name": "no"}, 422, {"error_type": "Validation"}),
    ("/similarity", {"inputs": {"source_sentence": "a"}}, 400, {"error_type": "Empty"}),
    ("/embed", {"texts": [""]}, 400, {}),
    ("/v2/embed", {"texts": ["a"]}, 400, {}),
    ("/v2/embed", {"texts": [LONG], "input_type": "clustering", "truncate": "NONE"}, 400, {}),
    ("/v2/embed", {"images": ["x"], "input_type": "clustering"}, 400, {}),
    ("/v2/embed", {"texts": ["a"], "input_type": "clustering", "model": "x"}, 404, {}),
    (
        "/v2/embed",
        {"texts": ["a"], "input_type": "clustering", "embedding_types": ["int8"]},
        400,
        {},
    ),
    ("/embed/text", {"text": ""}, 400, {}),
    ("/embed/text", {"text": 5}, 422, {}),
    ("/embed/text", {"text": "a", "model": "x"}, 404, {}),
    ("/embed/batch", {"texts": ["", ""]}, 400, {}),
]
#: Where each dialect's error has its words.
WORDS = {"/embed": "error", "/similarity": "error", "/v2/embed": "message"}


@pytest.mark.parametrize(("path", "body", "status", "fields"), ERRORS, ids=str)
def test_errors_are_the_dialects(
    client: TestClient, path: str, body: dict[str, Any], status: int, fields: dict[str, Any]
) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == status, reply.text
    told = reply.json()
    assert len(told.pop(WORDS.get(path, "detail"))) > 10
    assert told == fields


def test_refusals_are_counted_under_the_status_that_was_sent(lookup: FakeLookup) -> None:
    service = EmbedService(SPEC, lookup, IngressSettings())
    with TestClient(create_app(service)) as client:
        assert client.post("/embed", json={"inputs": 1}).status_code == 422
    counted = {(metric.name, *tags): n for (metric, tags), n in service.meter.drain().items()}
    assert counted == {("embedserve_requests", "422"): 1}


@pytest.mark.parametrize(
    ("error", "statuses"),
    [
        (Overloaded("full", 7), {429}),
        (Unavailable("gone"), {503}),
        (EngineFailed("broken"), {424, 500}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_faults_are_told_in_each_dialect(
    client: TestClient, lookup: FakeLookup, error: EmbedServeError, statuses: set[int]
) -> None:
    lookup.error = error
    bodies: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": "a"},
        "/embed": {"inputs": "a"},
        "/v2/embed": {"texts": ["a"], "input_type": "clustering"},
        "/embed/text": {"text": "a"},
    }
    for path, body in bodies.items():
        reply = client.post(path, json=body)
        assert reply.status_code in statuses, path
        assert str(error) in reply.text
        assert reply.headers.get("retry-after") == ("7" if reply.status_code == 429 else None)


def test_a_path_s_errors_are_its_dialect_s_also_before_the_body_is_read(
    client: TestClient,
) -> None:
    assert client.get("/embed").json()["error_type"] == "Validation"
    assert "message" in client.post("/v2/embed", content=b"{").json()
    assert "error" in client.get("/nowhere").json()


def test_dialects_of_one_path_have_keys_of_their_own() -> None:
    shared = [candidates for candidates in endpoints().values() if len(candidates) > 1]
    assert shared
    for candidates in shared:
        for one, other in combinations(candidates, 2):
            assert one.key != other.key


NAMES = sorted({endpoint.key for found in endpoints().values() for endpoint in found})
FIELDS = [*NAMES, "model", "dimensions", "truncate", "truncation_direction", "embedding_types"]
FIELDS += ["prompt_name", "output_dimension", "priority", "normalize", "use_cache", "parameters"]
FIELDS += ["encoding_format", "output_dtype", "images", "content", "source_sentence", "sentences"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from(sorted(endpoints())),
    body=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=6) | json_values,
)
def test_whatever_json_comes_it_is_answered_or_refused(
    client: TestClient, path: str, body: object
) -> None:
    reply = client.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert reply.status_code in (200, 400, 404, 422)
