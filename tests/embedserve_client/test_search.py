"""Documents in order of what they have to do with a query, and S3's three functions."""

from collections.abc import Iterator

import numpy as np
import pytest

from embedserve_client import search
from embedserve_client.client import Client
from embedserve_client.errors import IndexMismatch, SpaceMismatch
from embedserve_client.index import Hit
from embedserve_client.search import build_vector_index, generate_embeddings, rank, search_index
from embedserve_client.vectors import About, Vectors
from tests.clients.served import DIM, TEXTS, Served, same, serve, vectors

QUERY = "the lazy dog and its lake"
URLS = [f"https://example.org/{i}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    served.lookup.groups.clear()
    with Client(served.url) as client:
        yield client


@pytest.fixture
def environment(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client that nobody made: that of the environment."""
    monkeypatch.setenv("EMBEDSERVE_URL", served.url)
    search._of_the_environment.cache_clear()
    yield
    search._of_the_environment().close()
    search._of_the_environment.cache_clear()


def expected() -> list[tuple[object, int]]:
    scores = vectors(*TEXTS, prompt="document") @ vectors(QUERY, prompt="query")[0]
    order = sorted(range(len(TEXTS)), key=lambda i: (-round(float(scores[i]), 6), i))
    return [(pytest.approx(float(scores[i]), abs=1e-6), i) for i in order]


def test_documents_come_best_first_and_equal_ones_as_they_came(client: Client) -> None:
    hits = rank(QUERY, TEXTS, client)
    assert [(hit.score, hit.place) for hit in hits] == expected()
    assert [hit.metadata for hit in hits] == [TEXTS[hit.place] for hit in hits]
    places = [hit.place for hit in hits]
    assert TEXTS[0] == TEXTS[3]
    assert places.index(3) == places.index(0) + 1
    assert rank(QUERY, TEXTS, client, top=2) == hits[:2]
    assert rank(QUERY, TEXTS, client, top=99) == hits


def test_equal_documents_stay_in_order_among_many(client: Client) -> None:
    documents = [TEXTS[i % 2] for i in range(301)]
    places = [hit.place for hit in rank(QUERY, documents, client)]
    assert [place for place in places if place % 2 == 0] == list(range(0, 301, 2))
    assert [place for place in places if place % 2] == list(range(1, 301, 2))


def test_nothing_is_asked_for_nothing(client: Client, served: Served) -> None:
    assert rank(QUERY, [], client) == []
    with pytest.raises(ValueError, match="1 or more"):
        rank(QUERY, TEXTS, client, top=0)
    with pytest.raises(ValueError, match="one string"):
        rank(QUERY, "a document", client)
    assert served.lookup.groups == []


class Between:
    """A client whose service changes its model between two calls, and which was told to let it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def embed_query(self, text: str) -> Vectors:
        return self._client.embed_query(text)

    def embed_documents(self, texts: list[str]) -> Vectors:
        made = self._client.embed_documents(texts)
        return Vectors(np.asarray(made), About(None, "another", "service"))


def test_a_query_is_not_ranked_against_another_space(client: Client) -> None:
    with pytest.raises(SpaceMismatch):
        rank(QUERY, TEXTS, Between(client))  # type: ignore[arg-type]


def test_a_vector_without_length_is_next_to_nothing() -> None:
    scores = search._cosines(np.ones(2, np.float32), np.array([[0, 0], [2, 2]], np.float32))
    assert scores.tolist() == [0.0, pytest.approx(1.0)]
    assert search._cosines(np.zeros(2, np.float32), np.ones((1, 2), np.float32)).tolist() == [0.0]


@pytest.mark.usefixtures("environment")
def test_s3s_functions_need_no_client() -> None:
    embedded = generate_embeddings(TEXTS)
    assert same(embedded, vectors(*TEXTS))
    assert generate_embeddings("a").shape == (DIM,)
    index, metadata = build_vector_index(TEXTS, URLS)
    assert metadata[1] == {"url": URLS[1], "document": TEXTS[1]}
    hits = search_index(QUERY, index, metadata, k=2)
    assert [(hit.score, hit.place) for hit in hits] == expected()[:2]
    assert [hit.metadata["url"] for hit in hits] == [URLS[hit.place] for hit in hits]


@pytest.mark.usefixtures("environment")
def test_the_client_of_the_environment_is_made_once(served: Served) -> None:
    assert search._of_the_environment() is search._of_the_environment()
    assert search._of_the_environment().url == served.url


def test_s3s_functions_take_a_client(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSERVE_URL", "http://127.0.0.1:1")
    search._of_the_environment.cache_clear()
    assert same(generate_embeddings(TEXTS, client=client), vectors(*TEXTS))
    index, metadata = build_vector_index(TEXTS, URLS, client=client)
    assert index.client is client
    (hit,) = search_index(QUERY, index, list(range(len(metadata))), k=1)
    assert hit == Hit(hit.score, hit.place, hit.place)
    index.client = None
    assert search_index(QUERY, index, metadata, k=1, client=client)[0].place == hit.place


def test_what_does_not_belong_together_is_refused(client: Client, served: Served) -> None:
    with pytest.raises(IndexMismatch, match="1 addresses came for 2 documents"):
        build_vector_index(["a", "b"], ["u"], client=client)
    assert served.lookup.groups == []
    index, metadata = build_vector_index(TEXTS, URLS, client=client)
    with pytest.raises(IndexMismatch, match="made with it"):
        search_index(QUERY, index, metadata[1:])
