"""Routes that score, classify or embed sparsely, through the whole application."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.inputs import TextPair
from serve_app.results import ScoreResult
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialects.rerank_requests import ranking
from tests.fakes import SPEC, FakeBackend, fake_logits

RERANKER = replace(
    SPEC,
    name="org/reranker",
    aliases=("reranker",),
    kind="cross-encoder",
    tasks=("rerank", "classify"),
    labels=("relevant",),
    space_id="cafe-fp32",
)
CLASSIFIER = replace(
    RERANKER,
    name="org/classifier",
    aliases=("classifier",),
    tasks=("classify",),
    labels=("negative", "positive"),
    activation="softmax",
    space_id="beef-fp32",
)
SPARSE = replace(
    SPEC,
    name="org/sparse",
    aliases=("sparse",),
    kind="sparse",
    tasks=("embed_sparse",),
    space_id="feed-fp32",
)
SPECS = (SPEC, RERANKER, CLASSIFIER, SPARSE)


@pytest.fixture
def backends() -> dict[str, FakeBackend]:
    return {spec.name: FakeBackend(labels=len(spec.labels) or 1) for spec in SPECS}


@pytest.fixture
def client(backends: dict[str, FakeBackend]) -> Iterator[TestClient]:
    services = [EmbedService(spec, backends[spec.name], IngressSettings()) for spec in SPECS]
    with TestClient(create_app(Catalog(services)), raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, path: str, **body: object) -> httpx2.Response:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply


class Format(NamedTuple):
    """A request format that scores a query with documents."""

    path: str
    body: Callable[[str, list[str]], dict[str, Any]]
    #: Reads (index, score) from the reply, in the order of the reply.
    scores: Callable[[Any], list[tuple[int, float]]]
    is_ranked: bool = True  #: whether the reply is sorted by score


def pairs(items: Any, score: str = "relevance_score") -> list[tuple[int, float]]:
    return [(item["index"], item[score]) for item in items]


def documents(query: str, texts: list[str]) -> dict[str, Any]:
    return {"query": query, "documents": texts}


FORMATS = {
    "tei": Format("/rerank", lambda q, d: {"query": q, "texts": d}, lambda r: pairs(r, "score")),
    "infinity": Format("/rerank", documents, lambda r: pairs(r["results"])),
    "cohere": Format("/v2/rerank", documents, lambda r: pairs(r["results"])),
    "cohere v1, jina, vllm": Format("/v1/rerank", documents, lambda r: pairs(r["results"])),
    "voyage": Format(
        "/v1/rerank",
        lambda q, d: {**documents(q, d), "truncation": True},
        lambda r: pairs(r["data"]),
    ),
    "vllm, scores": Format(
        "/score",
        lambda q, d: {"text_1": q, "text_2": d},
        lambda r: pairs(r["data"], "score"),
        is_ranked=False,
    ),
    "vllm, pairs": Format(
        "/v1/score",
        lambda q, d: {"queries": [q] * len(d), "documents": d},
        lambda r: pairs(r["data"], "score"),
        is_ranked=False,
    ),
}
each_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=FORMATS)
words = st.text("abc", min_size=1, max_size=3)


def expected_scores(query: str, texts: list[str]) -> list[float]:
    logits = [fake_logits(TextPair(query, text), 1)[0] for text in texts]
    return [float(logit > 0) if logit else 0.5 for logit in logits]


@each_format
@given(query=words, texts=st.lists(words, min_size=1, max_size=6))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_format_returns_the_same_scores(
    client: TestClient, format_: Format, query: str, texts: list[str]
) -> None:
    reply = post(client, format_.path, **format_.body(query, texts))
    scores = format_.scores(reply.json())
    expected = [*enumerate(expected_scores(query, texts))]
    if format_.is_ranked:
        expected.sort(key=lambda pair: -pair[1])  # stable: equal scores keep their order
    assert scores == expected


@each_format
def test_a_request_without_a_model_gets_the_reranker(client: TestClient, format_: Format) -> None:
    reply = post(client, format_.path, **format_.body("a", ["b"]))
    assert reply.headers["x-embedding-space"] == RERANKER.space_id


@each_format
@pytest.mark.parametrize("name", ["fake", "classifier", "sparse"])
def test_a_model_that_scores_no_pairs_is_a_client_error(
    client: TestClient, format_: Format, name: str
) -> None:
    reply = client.post(format_.path, json={**format_.body("a", ["b"]), "model": name})
    assert reply.status_code in (400, 424)
    assert "rerank" in reply.text or "re-rank" in reply.text


@each_format
def test_an_unknown_model_is_an_error_that_lists_the_served_ones(
    client: TestClient, format_: Format
) -> None:
    reply = client.post(format_.path, json={**format_.body("a", ["b"]), "model": "gpt"})
    assert reply.status_code in (400, 404)
    assert all(spec.name in reply.text for spec in SPECS)


@each_format
def test_headers_select_the_lane_and_bypass_the_cache(
    client: TestClient, backends: dict[str, FakeBackend], format_: Format
) -> None:
    headers = {"x-priority": "bulk", "cache-control": "no-store"}
    assert client.post(format_.path, json=format_.body("a", ["b"]), headers=headers).is_success
    (group,) = backends[RERANKER.name].groups
    assert (group.task, group.lane, group.use_cache) == ("rerank", "bulk", False)


@each_format
def test_truncated_pairs_are_listed(client: TestClient, format_: Format) -> None:
    reply = post(client, format_.path, **format_.body("a", ["b", "c" * 16, "d"]))
    assert reply.headers["x-truncated-inputs"] == "1"


@each_format
def test_equal_documents_are_scored_once(
    client: TestClient, backends: dict[str, FakeBackend], format_: Format
) -> None:
    post(client, format_.path, **format_.body("a", ["b", "a", "b"]))
    (group,) = backends[RERANKER.name].groups
    assert group.texts == (TextPair("a", "b"), TextPair("a", "a"))


@each_format
@pytest.mark.parametrize("fault", ["", "\0", 1, None])
def test_a_document_that_is_no_text_is_a_client_error(
    client: TestClient, format_: Format, fault: Any
) -> None:
    reply = client.post(format_.path, json=format_.body("a", ["b", fault]))
    assert reply.status_code in (400, 422), reply.text


def result(logits: list[list[float]], **fields: Any) -> ScoreResult:
    n = len(logits)
    return ScoreResult(
        "m",
        np.array(logits, dtype=np.float32),
        np.ones(n, np.int32),
        np.zeros(n, np.bool_),
        np.zeros(n, np.uint8),
        ("relevant",),
        **fields,
    )


def test_documents_whose_probabilities_round_to_1_are_ranked_by_their_logits() -> None:
    ranked = ranking(result([[20.0], [30.0], [25.0], [30.0]]))
    assert [index for index, _ in ranked] == [1, 3, 2, 0]
    assert {float(score) for _, score in ranked} == {1.0}


def test_scores_are_sigmoids_of_the_logits_whatever_the_model_s_own_activation() -> None:
    ranked = ranking(result([[1.0], [-1.0]], activation="identity"))
    assert [float(score) for _, score in ranked] == pytest.approx([0.7310586, 0.2689414])
    raw = ranking(result([[1.0], [-1.0]]), raw=True)
    assert [float(score) for _, score in raw] == [1.0, -1.0]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_top_n_returns_the_best_documents(client: TestClient, path: str) -> None:
    reply = post(client, path, query="a", documents=["b", "ba", "a"], top_n=2)
    assert pairs(reply.json()["results"]) == [(1, 1.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": "a"}),
        ("/classify", {"input": ["a"]}),
        ("/classify", {"input": "a"}),
    ],
)
def test_the_classifier_is_the_default_though_a_reranker_is_listed_before_it(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    assert "positive" in post(client, path, **body).text
    assert "relevant" in post(client, path, **body, model="reranker").text


def test_labels_are_sorted_by_score_and_their_scores_add_up_to_1(client: TestClient) -> None:
    rows = post(client, "/predict", inputs=[["a"], ["bb"]], model="classifier").json()
    assert [[item["label"] for item in row] for row in rows] == [
        ["positive", "negative"],
        ["negative", "positive"],
    ]
    assert [sum(item["score"] for item in row) for row in rows] == [1.0, 1.0]


def test_sparse_vectors_have_no_zeros_and_ascending_indices(client: TestClient) -> None:
    reply = post(client, "/embed_sparse", inputs=["cab", "a"])
    assert reply.headers["x-embedding-space"] == SPARSE.space_id
    assert [[item["index"] for item in row] for row in reply.json()] == [[97, 98, 99], [97]]
    assert {item["value"] for row in reply.json() for item in row} == {0.5}


def test_lists_of_models_have_all_of_them(client: TestClient) -> None:
    names = {name for spec in SPECS for name in (spec.name, *spec.aliases)}
    openai = client.get("/v1/models").json()["data"]
    assert {model["id"] for model in openai} == names
    infinity = {m["id"]: m["capabilities"] for m in client.get("/models").json()["data"]}
    assert infinity.keys() == names
    assert infinity["reranker"] == ["rerank", "classify"]
    assert infinity["fake"] == ["embed"]
    ollama = {m["name"]: m["capabilities"] for m in client.get("/api/tags").json()["models"]}
    assert ollama["org/reranker:latest"] == []
    assert ollama["org/fake:latest"] == ["embedding"]
    assert client.get("/embed/models").json() == {
        "models": ["org/fake", "fake"],
        "default": "org/fake",
    }


def test_info_describes_the_kind_of_each_model(client: TestClient) -> None:
    types = {
        name: client.get("/info", params={"model": name}).json()["model_type"]
        for name in ("fake", "reranker", "classifier", "sparse")
    }
    assert types == {
        "fake": {"embedding": {"pooling": None}},
        "reranker": {"reranker": {"id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}},
        "classifier": {
            "classifier": {
                "id2label": {"0": "negative", "1": "positive"},
                "label2id": {"negative": 0, "positive": 1},
            }
        },
        "sparse": {"embedding": {"pooling": "splade"}},
    }


def test_the_inference_protocol_has_tensors_for_embedding_models_only(client: TestClient) -> None:
    assert client.get("/v2/models/fake").json()["outputs"][0]["shape"] == [-1, SPEC.dim]
    assert client.get("/v2/models/reranker").json()["outputs"] == []
