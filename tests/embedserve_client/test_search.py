"""Ranking of documents and of web pages."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embedserve_client.client import Client
from embedserve_client.errors import HTTPError, SpaceMismatchError
from embedserve_client.search import rank, rank_pages
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo, Vectors
from tests.clients.app_server import (
    TEXTS,
    AppServer,
    expected_vectors,
    run_app_server,
)

QUERY = "the lazy dog and its lake"


@pytest.fixture(scope="module")
def server() -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


@pytest.fixture
def client(server: AppServer) -> Iterator[Client]:
    server.backend.groups.clear()
    with Client(server.url) as client:
        yield client


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

    def embed_query(self, text: str, model: str | None = None) -> Vectors:
        return self._client.embed_query(text)

    def embed_documents(self, texts: list[str], model: str | None = None) -> Vectors:
        vectors = self._client.embed_documents(texts)
        return Vectors(np.asarray(vectors), VectorInfo(None, "another", "service"))


def test_query_and_documents_must_have_comparable_spaces(client: Client) -> None:
    with pytest.raises(SpaceMismatchError):
        rank(QUERY, TEXTS, SpaceChangingClient(client))  # type: ignore[arg-type]


class FixedClient:
    """A client with given vectors."""

    def __init__(self, query: list[float], documents: list[list[float]]) -> None:
        self._query, self._documents = query, documents

    def embed_query(self, text: str, model: str | None = None) -> Vectors:
        return Vectors(self._query, VectorInfo(Space("f00d", "fp32")))

    def embed_documents(self, texts: list[str], model: str | None = None) -> Vectors:
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


LONG_PAGE = f"{'padding ' * 125}the lazy dog and its lake {'padding ' * 200}"
PAGES = [
    ("https://a.example", "The stock market fell."),
    ("https://b.example", LONG_PAGE),
    ("https://c.example", ""),
    ("https://d.example", "the lazy dog  and\n its lake"),
    ("https://e.example", "the lazy dog and its lake"),
]


def test_pages_are_ranked_by_passages_of_bounded_length(client: Client) -> None:
    hits = rank_pages(QUERY, PAGES, client)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert max(len(hit.text) for hit in hits) <= 1000
    assert {hit.url for hit in hits} == {f"https://{name}.example" for name in "abd"}
    (passage,) = [hit for hit in hits if hit.url == "https://b.example" and "lazy dog" in hit.text]
    assert passage.text in " ".join(LONG_PAGE.split())
    for hit in hits:
        expected = expected_vectors(hit.text, prompt="document")[0]
        query = expected_vectors(QUERY, prompt="query")[0]
        assert hit.score == pytest.approx(float(expected @ query), abs=1e-6)


def test_a_model_may_be_named(client: Client) -> None:
    assert rank("a", ["a", "b"], client, model="hashing")[0].metadata == "a"
    assert rank_pages("a", [("url", "a")], client, model="hashing")[0].text == "a"
    with pytest.raises(HTTPError, match="isn't served here"):
        rank("a", ["a", "b"], client, model="other")
    with pytest.raises(HTTPError, match="isn't served here"):
        rank_pages("a", [("url", "a")], client, model="other")


def test_passages_that_say_the_same_are_returned_once(client: Client) -> None:
    assert [hit.text for hit in rank_pages(QUERY, PAGES[2:], client)] == [QUERY]
    pages = [("https://a.example", "a b c d e f g h"), ("https://b.example", "a b c d e f g h.")]
    same = FixedClient([1, 0], [[1, 0.1], [1, 0.11]])
    assert len(rank_pages("query", pages, same)) == 1  # type: ignore[arg-type]
    different = FixedClient([1, 0], [[1, 0.1], [1, 0.9]])
    assert len(rank_pages("query", pages, different)) == 2  # type: ignore[arg-type]


def test_only_the_first_passages_of_pages_are_embedded(client: Client, server: AppServer) -> None:
    hits = rank_pages(QUERY, PAGES, client, 2, passages_per_page=1)
    assert hits[0].url == "https://d.example"
    assert len(hits) == 2
    texts = [text for group in server.backend.groups for text in group.texts]
    assert len(texts) == 1 + 3  # the query, and one passage of each page


@pytest.mark.parametrize(
    "page", [("https://a.example",), ("https://a.example", 3), "a text", None, (b"u", "text")]
)
def test_pages_are_pairs_of_strings(client: Client, page: Any) -> None:
    with pytest.raises(ValueError, match="Page 1 isn't a pair"):
        rank_pages(QUERY, [PAGES[0], page], client)


def test_without_text_nothing_is_embedded(client: Client, server: AppServer) -> None:
    assert (
        rank_pages(QUERY, [("https://c.example", ""), ("https://d.example", " \n")], client) == []
    )
    assert server.backend.groups == []
    with pytest.raises(ValueError, match="at least 1"):
        rank_pages(QUERY, PAGES, client, 0)
    with pytest.raises(ValueError, match="at least 1"):
        rank_pages(QUERY, PAGES, client, passages_per_page=0)
