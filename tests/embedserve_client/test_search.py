"""Ranking, and the search functions with the signatures of a shared model server."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embedserve_client.client import Client
from embedserve_client.errors import IndexMismatchError, SpaceMismatchError
from embedserve_client.index import Hit
from embedserve_client.search import (
    build_vector_index,
    default_client,
    generate_embeddings,
    rank,
    search_index,
)
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo, Vectors
from tests.clients.app_server import (
    DIM,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    run_app_server,
)

QUERY = "the lazy dog and its lake"
URLS = [f"https://example.org/{i}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def server() -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


@pytest.fixture
def client(server: AppServer) -> Iterator[Client]:
    server.backend.groups.clear()
    with Client(server.url) as client:
        yield client


@pytest.fixture
def environment(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets the URL of the default client."""
    monkeypatch.setenv("EMBEDSERVE_URL", server.url)
    default_client.cache_clear()
    yield
    default_client().close()
    default_client.cache_clear()


def expected() -> list[tuple[object, int]]:
    scores = (
        expected_vectors(*TEXTS, prompt="document") @ expected_vectors(QUERY, prompt="query")[0]
    )
    order = sorted(range(len(TEXTS)), key=lambda i: (-round(float(scores[i]), 6), i))
    return [(pytest.approx(float(scores[i]), abs=1e-6), i) for i in order]


def test_rank_is_best_first_and_ties_keep_their_order(client: Client) -> None:
    hits = rank(QUERY, TEXTS, client)
    assert [(hit.score, hit.position) for hit in hits] == expected()
    assert [hit.metadata for hit in hits] == [TEXTS[hit.position] for hit in hits]
    positions = [hit.position for hit in hits]
    assert TEXTS[0] == TEXTS[3]
    assert positions.index(3) == positions.index(0) + 1
    assert rank(QUERY, TEXTS, client, k=2) == hits[:2]
    assert rank(QUERY, TEXTS, client, k=99) == hits


def test_ties_keep_their_order_among_many_documents(client: Client) -> None:
    documents = [TEXTS[i % 2] for i in range(301)]
    positions = [hit.position for hit in rank(QUERY, documents, client)]
    assert [position for position in positions if position % 2 == 0] == list(range(0, 301, 2))
    assert [position for position in positions if position % 2] == list(range(1, 301, 2))


def test_rank_checks_its_arguments_before_it_embeds(client: Client, server: AppServer) -> None:
    assert rank(QUERY, [], client) == []
    with pytest.raises(ValueError, match="at least 1"):
        rank(QUERY, TEXTS, client, k=0)
    with pytest.raises(ValueError, match="one string"):
        rank(QUERY, "a document", client)
    assert server.backend.groups == []


class SpaceChangingClient:
    """A client that allows mixed spaces, of a service that changes its model between two calls."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def embed_query(self, text: str) -> Vectors:
        return self._client.embed_query(text)

    def embed_documents(self, texts: list[str]) -> Vectors:
        vectors = self._client.embed_documents(texts)
        return Vectors(np.asarray(vectors), VectorInfo(None, "another", "service"))


def test_query_and_documents_must_have_comparable_spaces(client: Client) -> None:
    with pytest.raises(SpaceMismatchError):
        rank(QUERY, TEXTS, SpaceChangingClient(client))  # type: ignore[arg-type]


class FixedClient:
    """A client with given vectors."""

    def __init__(self, query: list[float], documents: list[list[float]]) -> None:
        self._query, self._documents = query, documents

    def embed_query(self, text: str) -> Vectors:
        return Vectors(self._query, VectorInfo(Space("f00d", "fp32")))

    def embed_documents(self, texts: list[str]) -> Vectors:
        return Vectors(self._documents, VectorInfo(Space("f00d", "fp32")))


@pytest.mark.parametrize(
    ("query", "documents", "scores"),
    [([1, 1], [[0, 0], [2, 2]], [1.0, 0.0]), ([0, 0], [[1, 1]], [0.0])],
)
def test_cosine_to_a_zero_vector_is_zero(
    query: list[float], documents: list[list[float]], scores: list[float]
) -> None:
    client: Any = FixedClient(query, documents)
    hits = rank("query", ["a", "b"][: len(documents)], client)
    assert [hit.score for hit in hits] == pytest.approx(scores)


@pytest.mark.usefixtures("environment")
def test_functions_default_to_the_default_client() -> None:
    embedded = generate_embeddings(TEXTS)
    assert equal_vectors(embedded, expected_vectors(*TEXTS))
    assert generate_embeddings("a").shape == (DIM,)
    index, metadata = build_vector_index(TEXTS, URLS)
    assert metadata[1] == {"url": URLS[1], "document": TEXTS[1]}
    hits = search_index(QUERY, index, metadata, k=2)
    assert [(hit.score, hit.position) for hit in hits] == expected()[:2]
    assert [hit.metadata["url"] for hit in hits] == [URLS[hit.position] for hit in hits]


@pytest.mark.usefixtures("environment")
def test_default_client_is_created_once(server: AppServer) -> None:
    assert default_client() is default_client()
    assert default_client().base_url == server.url


def test_functions_accept_a_client(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSERVE_URL", "http://127.0.0.1:1")
    default_client.cache_clear()
    assert equal_vectors(generate_embeddings(TEXTS, client=client), expected_vectors(*TEXTS))
    index, metadata = build_vector_index(TEXTS, URLS, client=client)
    assert index.client is client
    (hit,) = search_index(QUERY, index, list(range(len(metadata))), k=1)
    assert hit == Hit(hit.score, hit.position, hit.position)
    index.client = None
    assert search_index(QUERY, index, metadata, k=1, client=client)[0].position == hit.position


def test_mismatched_lengths_are_rejected(client: Client, server: AppServer) -> None:
    with pytest.raises(IndexMismatchError, match="1 URLs for 2 documents"):
        build_vector_index(["a", "b"], ["u"], client=client)
    assert server.backend.groups == []
    index, metadata = build_vector_index(TEXTS, URLS, client=client)
    with pytest.raises(IndexMismatchError, match="built with the index"):
        search_index(QUERY, index, metadata[1:])
