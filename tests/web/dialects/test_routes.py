"""Routes of all dialects through the whole application."""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Float32
from serve_app.web.app import create_app
from serve_app.web.dialect import endpoints_by_path
from serve_app.web.dialects import load_dialects
from tests.fakes import SPEC, FakeBackend, fake_vector

BY_PATH = endpoints_by_path(load_dialects())
ROUTES = [route for candidates in BY_PATH.values() for route in candidates]
#: A model with vectors of unit length, so that `normalize` leaves their bits alone.
UNIT = replace(SPEC, unit_length=True)
#: Twenty tokens, four over the limit of the fake model.
LONG = "abcdefghijklmnopqrst"


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(UNIT, lookup, IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, **body: object) -> httpx2.Response:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply


def array(vectors: object) -> Float32:
    return np.array(vectors, dtype=np.float32)


def from_base64(vector: str) -> Float32:
    return np.frombuffer(base64.b64decode(vector), "<f4")


class Format(NamedTuple):
    """A request format that returns the vector of a text."""

    path: str
    body: Callable[[str], dict[str, Any]]
    vector: Callable[[Any], Any]  #: reads the vector from the reply


_COHERE = {"model": "fake", "input_type": "clustering"}
FORMATS = {
    "openai": Format(
        "/v1/embeddings", lambda t: {"input": [t]}, lambda r: r["data"][0]["embedding"]
    ),
    "openai, base64": Format(
        "/v1/embeddings",
        lambda t: {"input": t, "encoding_format": "base64"},
        lambda r: from_base64(r["data"][0]["embedding"]),
    ),
    "openai, with fields of Jina and Voyage": Format(
        "/v1/embeddings",
        lambda t: {"input": t, "task": "separation", "normalized": True, "output_dtype": "float"},
        lambda r: r["data"][0]["embedding"],
    ),
    "infinity": Format(
        "/embeddings", lambda t: {"input": f" {t} "}, lambda r: r["data"][0]["embedding"]
    ),
    "tei": Format("/embed", lambda t: {"inputs": t}, lambda r: r[0]),
    "tei, at the root": Format("/", lambda t: {"inputs": [t]}, lambda r: r[0]),
    "tei, invocations": Format("/invocations", lambda t: {"inputs": [t]}, lambda r: r[0]),
    "sidecar": Format("/embed", lambda t: {"texts": [t]}, lambda r: r["vectors"][0]),
    "cohere": Format(
        "/v2/embed", lambda t: {**_COHERE, "texts": [t]}, lambda r: r["embeddings"]["float"][0]
    ),
    "cohere, base64": Format(
        "/v2/embed",
        lambda t: {**_COHERE, "texts": [t], "embedding_types": ["base64"]},
        lambda r: from_base64(r["embeddings"]["base64"][0]),
    ),
    "cohere, inputs": Format(
        "/v2/embed",
        lambda t: {**_COHERE, "inputs": [{"content": [{"type": "text", "text": t}]}]},
        lambda r: r["embeddings"]["float"][0],
    ),
    "document": Format("/embed/text", lambda t: {"text": t}, lambda r: r["embedding"]),
    "documents": Format("/embed/batch", lambda t: {"texts": ["", t]}, lambda r: r["embeddings"][0]),
    "kserve": Format(
        "/openai/v1/embeddings", lambda t: {"input": t}, lambda r: r["data"][0]["embedding"]
    ),
    "azure": Format(
        "/openai/deployments/fake/embeddings",
        lambda t: {"input": t},
        lambda r: r["data"][0]["embedding"],
    ),
    "openai engines": Format(
        "/v1/engines/fake/embeddings", lambda t: {"input": t}, lambda r: r["data"][0]["embedding"]
    ),
    "ollama": Format("/api/embed", lambda t: {"input": t}, lambda r: r["embeddings"][0]),
    "ollama, a prompt": Format(
        "/api/embeddings", lambda t: {"prompt": t}, lambda r: r["embedding"]
    ),
    "open inference": Format(
        "/v2/models/fake/infer",
        lambda t: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [t]}]},
        lambda r: r["outputs"][0]["data"],
    ),
    "open inference, with a version": Format(
        "/v2/models/fake/versions/1/infer",
        lambda t: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [t]}]},
        lambda r: r["outputs"][0]["data"],
    ),
    "voyage, multimodal": Format(
        "/v1/multimodalembeddings",
        lambda t: {"inputs": [{"content": [{"type": "text", "text": t}]}]},
        lambda r: r["data"][0]["embedding"],
    ),
    "weaviate": Format("/vectors", lambda t: {"text": t}, lambda r: r["vector"]),
}
VERTEX = Format(
    "/vertex", lambda t: {"instances": [{"inputs": t}]}, lambda r: r["predictions"][0][0]
)

each_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)


def test_every_route_is_tested_here() -> None:
    paths = {
        next(path for path in BY_PATH if re.fullmatch(re.sub("{.*}", ".+", path), format_.path))
        for format_ in FORMATS.values()
    }
    others = {"/embed_all", "/similarity", "/tokenize", "/decode", "/v1/tokenize"}
    others |= {"/v1/detokenize", "/vertex", "/embed/query"}
    # In test_scores.py.
    others |= {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"}
    others |= {"/predict", "/classify", "/embed_sparse"}
    assert paths | others == set(BY_PATH)


@pytest.mark.parametrize("format_", [*FORMATS.values(), VERTEX], ids=[*FORMATS, "vertex"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_route_returns_the_same_vector(
    client: TestClient, format_: Format, text: str
) -> None:
    text = text.strip() or "a"  # Infinity strips white space
    reply = post(client, format_.path, **format_.body(text))
    assert array(format_.vector(reply.json())).tobytes() == fake_vector(text).tobytes()


@pytest.mark.parametrize("format_", [*FORMATS.values(), VERTEX], ids=[*FORMATS, "vertex"])
def test_every_route_returns_the_same_vector_of_chunks(client: TestClient, format_: Format) -> None:
    body = format_.body(LONG)
    for instance in body.get("instances", [body]):
        instance["chunk"] = True
    parts = [14 * fake_vector(f"[{LONG[:14]}]"), 6 * fake_vector(f"[{LONG[14:]}]")]
    mean = np.sum(parts, axis=0, dtype="f8") / 20
    reply = post(client, format_.path, **body)
    assert "x-truncated-inputs" not in reply.headers
    np.testing.assert_allclose(
        array(format_.vector(reply.json())), mean / np.linalg.norm(mean), atol=1e-6
    )


RAW = {"accept": "application/octet-stream"}


@each_format
def test_vectors_may_be_returned_raw(client: TestClient, format_: Format) -> None:
    reply = client.post(format_.path, json=format_.body("abc"), headers=RAW)
    assert reply.content == fake_vector("abc").tobytes()
    expected = {
        "content-type": "application/octet-stream",
        "x-embedding-shape": "1,8",
        "x-embedding-dtype": "float32",
        "x-embedding-model": "org/fake",
        "x-embedding-tokens": "3",
        "x-embedding-space": SPEC.space_id,
        "x-cache": "hits=0; misses=1",
    }
    assert {name: reply.headers.get(name) for name in expected} == expected


@pytest.mark.parametrize("accept", ["application/json, application/octet-stream", RAW["accept"]])
def test_raw_vectors_are_rows_in_the_order_of_the_texts(client: TestClient, accept: str) -> None:
    body = {"inputs": ["a", "b", "a"], "dimensions": 3}
    raw = client.post("/embed", json=body, headers={"accept": accept})
    assert raw.headers["x-embedding-shape"] == "3,3"
    vectors = np.frombuffer(raw.content, "<f4").reshape(3, 3)
    assert array(post(client, "/embed", **body).json()).tobytes() == vectors.tobytes()


def test_raw_vectors_are_float32_whatever_type_the_body_selects(client: TestClient) -> None:
    body = {"input": "a", "output_dtype": "binary", "encoding_format": "base64"}
    reply = client.post("/v1/embeddings", json=body, headers=RAW)
    assert reply.content == fake_vector("a").tobytes()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/tokenize", {"inputs": "a"}),
        ("/embed_all", {"inputs": "a"}),
        ("/vertex", {"instances": [{"inputs": "a"}]}),
    ],
)
def test_other_results_are_always_json(client: TestClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json=body, headers=RAW)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == post(client, path, **body).json()


def test_errors_are_always_json(client: TestClient) -> None:
    reply = client.post("/embed", json={"inputs": 1}, headers=RAW)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error_type"] == "Validation"


_START, _END = f"[{LONG[-14:]}]", LONG[:16]
TRUNCATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("openai", {}, _END),
    ("openai", {"truncate": "END"}, _END),
    ("openai", {"truncate": "START"}, _START),
    ("openai", {"truncation_side": "left"}, _START),
    ("openai", {"truncation_side": "right"}, _END),
    ("openai", {"truncation": True, "truncation_side": "left"}, _START),
    ("openai", {"truncate_prompt_tokens": 6}, f"[{LONG[:4]}]"),
    ("openai", {"truncate_prompt_tokens": 6, "truncation_side": "left"}, f"[{LONG[-4:]}]"),
    ("tei", {"truncate": True}, _END),
    ("tei", {"truncation_direction": "Right"}, _END),
    ("tei", {"truncation_direction": "Left"}, _START),
    ("tei, at the root", {"truncation_direction": "left"}, _START),
    ("cohere", {}, _END),
    ("cohere", {"truncate": "END"}, _END),
    ("cohere", {"truncate": "START"}, _START),
    ("cohere", {"truncate": "START", "max_tokens": 6}, f"[{LONG[-4:]}]"),
    ("infinity", {}, _END),
    ("ollama", {}, _END),
    ("ollama", {"truncate": True}, _END),
    ("ollama", {"options": {"num_ctx": 8}}, f"[{LONG[:6]}]"),
    ("ollama", {"options": {"num_ctx": 4096}}, _END),
    ("ollama, a prompt", {"options": {"num_ctx": 8}}, f"[{LONG[:6]}]"),
    ("sidecar", {}, _END),
    ("document", {}, _END),
]


@pytest.mark.parametrize(("format_", "fields", "truncated"), TRUNCATIONS, ids=str)
def test_the_dialect_s_fields_select_how_a_text_is_truncated(
    client: TestClient, format_: str, fields: dict[str, Any], truncated: str
) -> None:
    path, body, vector = FORMATS[format_]
    reply = post(client, path, **body(LONG), **fields)
    assert array(vector(reply.json())).tobytes() == fake_vector(truncated).tobytes()
    assert reply.headers["x-truncated-inputs"] == "0"


REJECTIONS: list[tuple[str, dict[str, Any], int]] = [
    ("openai", {"truncate": "NONE"}, 400),
    ("openai", {"truncate": False}, 400),
    ("openai", {"truncation": False, "truncation_side": "left"}, 400),
    ("tei", {"truncate": False}, 422),
    ("tei", {"truncate": False, "truncation_direction": "Left"}, 422),
    ("cohere", {"truncate": "NONE"}, 400),
    ("ollama", {"truncate": False}, 400),
]


@pytest.mark.parametrize(("format_", "fields", "status"), REJECTIONS, ids=str)
def test_a_text_over_the_limit_is_rejected_if_truncation_is_off(
    client: TestClient, format_: str, fields: dict[str, Any], status: int
) -> None:
    reply = client.post(FORMATS[format_].path, json={**FORMATS[format_].body(LONG), **fields})
    assert reply.status_code == status
    assert "longer than the 16 tokens" in reply.text


def test_truncation_keeps_the_prompt(client: TestClient, lookup: FakeBackend) -> None:
    body = {"inputs": LONG, "truncation_direction": "Left", "prompt_name": "query"}
    reply = post(client, "/embed", **body)
    truncated = f"[query: {LONG[-7:]}]"
    assert array(reply.json()[0]).tobytes() == fake_vector(truncated).tobytes()


@pytest.mark.parametrize("format_", [*FORMATS.values(), VERTEX], ids=[*FORMATS, "vertex"])
def test_headers_select_the_lane_and_bypass_the_cache(
    client: TestClient, lookup: FakeBackend, format_: Format
) -> None:
    headers = {"x-priority": "bulk", "cache-control": "no-store"}
    assert client.post(format_.path, json=format_.body("a"), headers=headers).is_success
    (group,) = lookup.groups
    assert (group.lane, group.use_cache) == ("bulk", False)


@each_format
def test_every_dialect_can_bypass_the_cache(
    client: TestClient, lookup: FakeBackend, format_: Format
) -> None:
    post(client, format_.path, **format_.body("a"), use_cache=False)
    assert [group.use_cache for group in lookup.groups] == [False]


def test_cohere_s_priority_selects_the_lane(client: TestClient, lookup: FakeBackend) -> None:
    for priority in (0, 5):
        body = {"model": "fake", "input_type": "clustering", "texts": ["a"]}
        post(client, "/v2/embed", **body, priority=priority)
    assert [group.lane for group in lookup.groups] == ["interactive", "bulk"]


def test_errors_are_counted_under_the_status_that_was_sent(lookup: FakeBackend) -> None:
    service = EmbedService(SPEC, lookup, IngressSettings())
    with TestClient(create_app(Catalog([service]))) as client:
        assert client.post("/embed", json={"inputs": 1}).status_code == 422
    counted = {
        (metric.name, *tags): n for (metric, tags), n in service.meter.process.drain().items()
    }
    assert counted == {("embedserve_requests", "422", "org/fake"): 1}


def test_deciding_keys_of_a_shared_path_are_disjoint() -> None:
    shared = [candidates for candidates in BY_PATH.values() if len(candidates) > 1]
    assert shared
    for candidates in shared:
        for (_, endpoint), (_, other) in permutations(candidates, 2):
            assert endpoint.deciding_key not in {field.name for field in other.fields}
