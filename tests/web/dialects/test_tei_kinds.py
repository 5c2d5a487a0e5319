"""TEI's `/`, `/invocations` and `/vertex`, which answer by the kind of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.model_spec import ModelSpec
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.tasks import Task
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend
from tests.web.dialects.test_scores import CLASSIFIER, RERANKER, SPARSE

COLBERT = replace(
    SPEC,
    name="org/colbert",
    aliases=("colbert",),
    kind="multi-vector",
    tasks=("embed_tokens", "rerank"),
    space_id="dead-fp32",
)
SPECS = (SPEC, RERANKER, CLASSIFIER, SPARSE, COLBERT)
#: The route of each kind of model.
ROUTES = {
    "fake": "/embed",
    "reranker": "/rerank",
    "classifier": "/predict",
    "sparse": "/embed_sparse",
}
RANK = {"query": "ab", "texts": ["b", "cab"]}
#: For each kind bodies, of which some are errors.
BODIES: dict[str, list[dict[str, Any]]] = {
    "fake": [
        {"inputs": "a"},
        {"inputs": ["a", "b"], "dimensions": 2, "prompt_name": "query"},
        {"inputs": "x" * 20, "truncate": False},
        {"inputs": ["a"], "truncation_direction": "Up"},
        {"inputs": 1},
    ],
    "reranker": [
        RANK,
        {**RANK, "raw_scores": True, "return_text": True},
        {**RANK, "texts": []},
        {**RANK, "texts": ["a", 1]},
        {"texts": ["a"]},
    ],
    "classifier": [
        {"inputs": "a"},
        {"inputs": ["a", "b"], "raw_scores": True},
        {"inputs": [["a"], ["a", "b"]]},
        {"inputs": ["a", "b", "c"]},
        {"inputs": "a", "raw_scores": 1},
    ],
    "sparse": [
        {"inputs": ["aba", "b"]},
        {"inputs": "a", "prompt_name": "query"},
        {"inputs": "a", "truncation_direction": "Left"},
        {"inputs": ""},
    ],
}
CASES = [(kind, body) for kind, bodies in BODIES.items() for body in bodies]
each_body = pytest.mark.parametrize(("kind", "body"), CASES)
each_root = pytest.mark.parametrize("path", ["/", "/invocations"])


def client_of(specs: Sequence[ModelSpec], defaults: Mapping[Task, str] | None = None) -> TestClient:
    services = [
        EmbedService(spec, FakeBackend(len(spec.labels) or 1), IngressSettings()) for spec in specs
    ]
    return TestClient(create_app(Catalog(services, defaults=defaults)))


def first(alias: str) -> list[ModelSpec]:
    """Returns all models, the one with this alias first."""
    return sorted(SPECS, key=lambda spec: alias not in spec.aliases)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_of(SPECS)


@each_root
@each_body
def test_the_named_model_decides(
    client: TestClient, path: str, kind: str, body: dict[str, Any]
) -> None:
    named = {**body, "model": kind}
    reply, expected = client.post(path, json=named), client.post(ROUTES[kind], json=named)
    assert (reply.status_code, reply.json()) == (expected.status_code, expected.json())
    assert reply.headers["x-embedding-space"] == expected.headers["x-embedding-space"]
    assert ("x-compute-tokens" in reply.headers) == ("x-compute-tokens" in expected.headers)


@each_root
@each_body
def test_the_first_model_decides_where_none_is_named(
    path: str, kind: str, body: dict[str, Any]
) -> None:
    client = client_of(first(kind))
    reply, expected = client.post(path, json=body), client.post(ROUTES[kind], json=body)
    assert (reply.status_code, reply.json()) == (expected.status_code, expected.json())
    assert reply.headers["x-embedding-space"] == expected.headers["x-embedding-space"]


@each_root
def test_the_default_model_of_its_task_answers(path: str) -> None:
    second = replace(SPEC, name="org/second", aliases=(), space_id="beef-fp32")
    client = client_of([SPEC, second], {"embed": "org/second"})
    assert client.post(path, json={"inputs": "a"}).headers["x-embedding-space"] == "beef-fp32"


def test_a_pair_is_compared_with_embedding_models_only(client: TestClient) -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}}
    assert client.post("/", json=body).json() == client.post("/similarity", json=body).json()
    assert client.post("/", json={**body, "model": "sparse"}).status_code == 422


@pytest.mark.parametrize("path", ["/", "/invocations", "/vertex"])
def test_a_model_of_several_outputs_is_an_error_that_lists_them(
    client: TestClient, path: str
) -> None:
    body: dict[str, Any] = {"inputs": "a"} if path != "/vertex" else {"instances": [RANK]}
    for reply in (
        client.post(path, json={**body, "model": "colbert"}),
        client_of([COLBERT]).post(path, json=body),
        client_of(first("colbert")).post(path, json=body),
    ):
        assert reply.status_code == 424
        assert "'org/colbert'" in reply.json()["error"]
        assert "embed_tokens, rerank" in reply.json()["error"]
        assert reply.headers["x-embedding-space"] == COLBERT.space_id


@each_root
@pytest.mark.parametrize("kind", ["fake", "classifier", "sparse"])
def test_a_body_of_another_kind_is_an_error_that_names_both(
    client: TestClient, path: str, kind: str
) -> None:
    reply = client.post(path, json={**RANK, "model": kind})
    assert reply.status_code == 422
    assert "takes `inputs`, not `texts`" in reply.json()["error"]
    reply = client.post(path, json={"inputs": "a", "model": "reranker"})
    assert reply.status_code == 422
    assert "'org/reranker', whose task is `rerank`" in reply.json()["error"]
    assert "takes `texts`, not `inputs`" in reply.json()["error"]


@each_root
def test_an_unknown_model_is_an_error_that_lists_the_served_ones(
    client: TestClient, path: str
) -> None:
    reply = client.post(path, json={"inputs": "a", "model": "gpt"})
    assert reply.status_code == 404
    assert all(spec.name in reply.text for spec in SPECS)


@pytest.mark.parametrize("kind", ROUTES)
def test_instances_are_bodies_of_the_models_route(client: TestClient, kind: str) -> None:
    bodies = [
        body
        for body in BODIES[kind]
        if client.post(ROUTES[kind], json={**body, "model": kind}).status_code == 200
    ]
    expected = [client.post(ROUTES[kind], json={**body, "model": kind}).json() for body in bodies]
    reply = client.post("/vertex", json={"instances": bodies, "model": kind})
    assert reply.json() == {"predictions": expected}
    assert client_of(first(kind)).post("/vertex", json={"instances": bodies}).json() == reply.json()


def test_a_reranker_also_classifies_instances(client: TestClient) -> None:
    body = {"inputs": ["ab", "cab"]}
    reply = client.post("/vertex", json={"instances": [RANK, body], "model": "reranker"})
    assert reply.json()["predictions"] == [
        client.post("/rerank", json=RANK).json(),
        client.post("/predict", json={**body, "model": "reranker"}).json(),
    ]


@pytest.mark.parametrize("kind", ["fake", "classifier", "sparse"])
def test_other_models_do_not_rerank_instances(client: TestClient, kind: str) -> None:
    reply = client.post("/vertex", json={"instances": [RANK], "model": kind})
    assert reply.status_code == 424
    assert "not a re-ranker model" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/", "/invocations", "/vertex"])
@pytest.mark.parametrize("kind", ROUTES)
def test_bodies_are_documented_as_they_are_accepted(path: str, kind: str) -> None:
    client = client_of(first(kind))
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    schema = Draft202012Validator(content["schema"])
    assert len(content["examples"]) == len(ROUTES)
    examples = [example["value"] for example in content["examples"].values()]
    bodies = [body for _, body in CASES]
    if path == "/vertex":
        bodies = [{"instances": [body]} for body in bodies]
    named = [{**body, "model": name} for body in bodies for name in ROUTES]
    replies = Draft202012Validator(
        operation["responses"]["200"]["content"]["application/json"]["schema"]
    )
    for body in [*examples, *bodies, *named]:
        reply = client.post(path, json=body)
        if b"tokens that the model takes" in reply.content:  # no schema counts tokens
            continue
        if reply.status_code == 424:  # the body is valid for another model
            continue
        assert schema.is_valid(body) == reply.is_success, (body, reply.text)
        if reply.is_success:
            replies.validate(reply.json())
        else:
            assert body not in examples
