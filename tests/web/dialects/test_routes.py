"""Every dialect through the whole application: what its clients send, and what they get."""

import base64
import json
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
from serve_app.service.embed import EmbedService
from serve_app.types import Float32
from serve_app.web.app import create_app
from serve_app.web.dialect import DialectEndpoint, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import object_example
from tests.fakes import SPEC, FakeBackend, fake_vector

BY_PATH = endpoints_by_path(load_dialects())
ROUTES = [route for candidates in BY_PATH.values() for route in candidates]
#: Of a model whose vectors have unit length, so that no dialect's default changes their bits.
UNIT = replace(SPEC, unit_length=True)
#: Twenty letters, where the model takes sixteen tokens.
LONG = "abcdefghijklmnopqrst"


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(EmbedService(UNIT, lookup, IngressSettings()))
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


class Way(NamedTuple):
    """One of the ways to ask for the vector of a text."""

    path: str
    ask: Callable[[str], dict[str, Any]]
    read: Callable[[Any], Any]  #: the vector, out of the reply


_COHERE = {"model": "fake", "input_type": "clustering"}
WAYS = {
    "openai": Way("/v1/embeddings", lambda t: {"input": [t]}, lambda r: r["data"][0]["embedding"]),
    "openai, base64": Way(
        "/v1/embeddings",
        lambda t: {"input": t, "encoding_format": "base64"},
        lambda r: from_base64(r["data"][0]["embedding"]),
    ),
    "openai, with fields of others": Way(
        "/v1/embeddings",
        lambda t: {"input": t, "task": "separation", "normalized": True, "output_dtype": "float"},
        lambda r: r["data"][0]["embedding"],
    ),
    "infinity": Way(
        "/embeddings", lambda t: {"input": f" {t} "}, lambda r: r["data"][0]["embedding"]
    ),
    "tei": Way("/embed", lambda t: {"inputs": t}, lambda r: r[0]),
    "tei, at the root": Way("/", lambda t: {"inputs": [t]}, lambda r: r[0]),
    "tei, invocations": Way("/invocations", lambda t: {"inputs": [t]}, lambda r: r[0]),
    "sidecar": Way("/embed", lambda t: {"texts": [t]}, lambda r: r["vectors"][0]),
    "cohere": Way(
        "/v2/embed", lambda t: {**_COHERE, "texts": [t]}, lambda r: r["embeddings"]["float"][0]
    ),
    "cohere, base64": Way(
        "/v2/embed",
        lambda t: {**_COHERE, "texts": [t], "embedding_types": ["base64"]},
        lambda r: from_base64(r["embeddings"]["base64"][0]),
    ),
    "cohere, inputs": Way(
        "/v2/embed",
        lambda t: {**_COHERE, "inputs": [{"content": [{"type": "text", "text": t}]}]},
        lambda r: r["embeddings"]["float"][0],
    ),
    "document": Way("/embed/text", lambda t: {"text": t}, lambda r: r["embedding"]),
    "documents": Way("/embed/batch", lambda t: {"texts": ["", t]}, lambda r: r["embeddings"][0]),
}
VERTEX = Way("/vertex", lambda t: {"instances": [{"inputs": t}]}, lambda r: r["predictions"][0][0])

a_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def test_every_route_of_vectors_has_its_way() -> None:
    ways = {way.path for way in WAYS.values()}
    others = {"/embed_all", "/similarity", "/tokenize", "/decode", "/v1/tokenize"}
    others |= {"/v1/detokenize", "/vertex", "/embed/query"}
    supported = {route.endpoint.path for route in ROUTES if route.endpoint.reply_schema}
    assert ways | others == supported


@pytest.mark.parametrize("way", [*WAYS.values(), VERTEX], ids=[*WAYS, "vertex"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_route_gives_the_same_vector(client: TestClient, way: Way, text: str) -> None:
    text = text.strip() or "a"  # one dialect strips them
    reply = post(client, way.path, **way.ask(text))
    assert array(way.read(reply.json())).tobytes() == fake_vector(text).tobytes()


@pytest.mark.parametrize("way", [*WAYS.values(), VERTEX], ids=[*WAYS, "vertex"])
def test_chunks_are_the_same_on_every_route(client: TestClient, way: Way) -> None:
    ask = way.ask(LONG)
    for one in ask.get("instances", [ask]):
        one["chunk"] = True
    parts = [14 * fake_vector(f"[{LONG[:14]}]"), 6 * fake_vector(f"[{LONG[14:]}]")]
    mean = np.sum(parts, axis=0, dtype="f8") / 20
    reply = post(client, way.path, **ask)
    assert "x-truncated-inputs" not in reply.headers
    np.testing.assert_allclose(
        array(way.read(reply.json())), mean / np.linalg.norm(mean), atol=1e-6
    )


RAW = {"accept": "application/octet-stream"}


@a_way
def test_vectors_can_come_as_their_bytes(client: TestClient, way: Way) -> None:
    reply = client.post(way.path, json=way.ask("abc"), headers=RAW)
    assert reply.content == fake_vector("abc").tobytes()
    wanted = {
        "content-type": "application/octet-stream",
        "x-embedding-shape": "1,8",
        "x-embedding-dtype": "float32",
        "x-embedding-model": "org/fake",
        "x-embedding-tokens": "3",
        "x-embedding-space": SPEC.space_id,
        "x-cache": "hits=0; misses=1",
    }
    assert {name: reply.headers.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("accept", ["application/json, application/octet-stream", RAW["accept"]])
def test_bytes_are_rows_of_what_was_asked_for(client: TestClient, accept: str) -> None:
    ask = {"inputs": ["a", "b", "a"], "dimensions": 3}
    raw = client.post("/embed", json=ask, headers={"accept": accept})
    assert raw.headers["x-embedding-shape"] == "3,3"
    vectors = np.frombuffer(raw.content, "<f4").reshape(3, 3)
    assert array(post(client, "/embed", **ask).json()).tobytes() == vectors.tobytes()


def test_bytes_are_float32_whatever_the_dialect_would_write(client: TestClient) -> None:
    ask = {"input": "a", "output_dtype": "binary", "encoding_format": "base64"}
    reply = client.post("/v1/embeddings", json=ask, headers=RAW)
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
def test_what_is_no_vectors_of_texts_stays_json(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    reply = client.post(path, json=body, headers=RAW)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == post(client, path, **body).json()


def test_errors_are_json_whatever_is_accepted(client: TestClient) -> None:
    reply = client.post("/embed", json={"inputs": 1}, headers=RAW)
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["error_type"] == "Validation"


_START, _END = f"[{LONG[-14:]}]", LONG[:16]
OVERFLOWS: list[tuple[str, dict[str, Any], str]] = [
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
    ("sidecar", {}, _END),
    ("document", {}, _END),
]


@pytest.mark.parametrize(("way", "fields", "kept"), OVERFLOWS, ids=str)
def test_what_is_cut_is_what_the_dialect_says(
    client: TestClient, way: str, fields: dict[str, Any], kept: str
) -> None:
    path, ask, read = WAYS[way]
    reply = post(client, path, **ask(LONG), **fields)
    assert array(read(reply.json())).tobytes() == fake_vector(kept).tobytes()
    assert reply.headers["x-truncated-inputs"] == "0"


REFUSALS: list[tuple[str, dict[str, Any], int]] = [
    ("openai", {"truncate": "NONE"}, 400),
    ("openai", {"truncate": False}, 400),
    ("openai", {"truncation": False, "truncation_side": "left"}, 400),
    ("tei", {"truncate": False}, 422),
    ("tei", {"truncate": False, "truncation_direction": "Left"}, 422),
    ("cohere", {"truncate": "NONE"}, 400),
]


@pytest.mark.parametrize(("way", "fields", "status"), REFUSALS, ids=str)
def test_what_may_not_be_cut_is_refused(
    client: TestClient, way: str, fields: dict[str, Any], status: int
) -> None:
    reply = client.post(WAYS[way].path, json={**WAYS[way].ask(LONG), **fields})
    assert reply.status_code == status
    assert "longer than the 16 tokens" in reply.text


def test_cutting_keeps_a_prompt(client: TestClient, lookup: FakeBackend) -> None:
    body = {"inputs": LONG, "truncation_direction": "Left", "prompt_name": "query"}
    reply = post(client, "/embed", **body)
    kept = f"[query: {LONG[-7:]}]"
    assert array(reply.json()[0]).tobytes() == fake_vector(kept).tobytes()


@pytest.mark.parametrize("way", [*WAYS.values(), VERTEX], ids=[*WAYS, "vertex"])
def test_headers_say_who_can_wait_and_what_is_not_kept(
    client: TestClient, lookup: FakeBackend, way: Way
) -> None:
    headers = {"x-priority": "bulk", "cache-control": "no-store"}
    assert client.post(way.path, json=way.ask("a"), headers=headers).is_success
    (group,) = lookup.groups
    assert (group.lane, group.use_cache) == ("bulk", False)


@a_way
def test_every_dialect_can_do_without_the_cache(
    client: TestClient, lookup: FakeBackend, way: Way
) -> None:
    post(client, way.path, **way.ask("a"), use_cache=False)
    assert [group.use_cache for group in lookup.groups] == [False]


def test_cohere_priority_is_the_lane(client: TestClient, lookup: FakeBackend) -> None:
    for priority in (0, 5):
        body = {"model": "fake", "input_type": "clustering", "texts": ["a"]}
        post(client, "/v2/embed", **body, priority=priority)
    assert [group.lane for group in lookup.groups] == ["interactive", "bulk"]


def test_refusals_are_counted_under_the_status_that_was_sent(lookup: FakeBackend) -> None:
    service = EmbedService(SPEC, lookup, IngressSettings())
    with TestClient(create_app(service)) as client:
        assert client.post("/embed", json={"inputs": 1}).status_code == 422
    counted = {(metric.name, *tags): n for (metric, tags), n in service.meter.drain().items()}
    assert counted == {("embedserve_requests", "422"): 1}


def test_deciding_keys_of_a_shared_path_are_disjoint() -> None:
    shared = [candidates for candidates in BY_PATH.values() if len(candidates) > 1]
    assert shared
    for candidates in shared:
        for (_, endpoint), (_, other) in permutations(candidates, 2):
            assert endpoint.deciding_key not in {field.name for field in other.fields}


FIELDS = sorted({field.name for route in ROUTES for field in route.endpoint.fields})
FIELDS += ["content", "images", "sentences", "source_sentence", "text", "type"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)

EDGES: list[Any] = ["", " ", "\0", 0, -1, 1e9, True, None, {}]
EDGES += [[], [""], [0], [-1], [None], [[]], [{}], [{"content": [{}]}], [{"inputs": []}]]


def near(route: DialectEndpoint) -> st.SearchStrategy[tuple[str, object]]:
    """A path, and a body with fields of its own: what they must have, or anything."""
    endpoint = route.endpoint
    must = {field.name: st.just(field.example()) for field in endpoint.fields if field.required}
    required = {name: good | good | json_values for name, good in must.items()}
    others = {field.name: json_values for field in endpoint.fields if not field.required}
    body = st.fixed_dictionaries(required, optional=others)
    return st.tuples(st.just(endpoint.path), body)


def answered_or_refused(client: TestClient, path: str, body: object) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post(path, content=json.dumps(body), headers=headers)
    assert reply.status_code in (200, 400, 404, 422, 424), (body, reply.text)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(*map(near, ROUTES)) | st.tuples(st.sampled_from(sorted(BY_PATH)), json_values))
def test_whatever_json_comes_it_is_answered_or_refused(
    client: TestClient, sent: tuple[str, object]
) -> None:
    answered_or_refused(client, *sent)


@pytest.mark.parametrize(
    "route", ROUTES, ids=lambda route: f"{route.dialect.name} {route.endpoint.path}"
)
def test_whatever_a_field_holds_it_is_answered_or_refused(
    client: TestClient, route: DialectEndpoint
) -> None:
    endpoint = route.endpoint
    whole = object_example(endpoint.fields)
    for field in endpoint.fields:
        without = {name: value for name, value in whole.items() if name != field.name}
        answered_or_refused(client, endpoint.path, without)
        for edge in EDGES:
            answered_or_refused(client, endpoint.path, {**without, field.name: edge})
