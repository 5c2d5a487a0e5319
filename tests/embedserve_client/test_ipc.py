"""Programs of a shared model server, with only their import changed."""

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embedserve_client import InvalidURLError
from embedserve_client.compat import ipc
from embedserve_client.errors import IndexMismatchError, LocalModelError
from embedserve_client.hit import Hit
from embedserve_client.index import VectorIndex
from tests.clients.app_server import (
    DIM,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    run_app_server,
)
from tests.embedserve_client.scripted_server import ScriptedServer, vector

QUERY = "the lazy dog and its lake"
URLS = [f"https://example.org/{i}" for i in range(len(TEXTS))]
VARIABLES = (
    *("USE_IPC_EMBEDDING", "EMBEDDING_SERVER_HOST", "EMBEDDING_SERVER_PORT"),
    *("EMBEDDING_MODEL_NAME", "MAX_CONCURRENT_OPERATIONS"),
)


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(app: AppServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Selects the service by the variables of a shared model server."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    host, port = app.url.removeprefix("http://").split(":")
    monkeypatch.setenv("EMBEDDING_SERVER_HOST", host)
    monkeypatch.setenv("EMBEDDING_SERVER_PORT", port)
    app.backend.groups.clear()
    importlib.reload(ipc)  # it has one client for the whole process
    yield
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ipc.get_embedding_model().close()


def fetch_pages(query: str) -> list[tuple[str, str]]:
    return [(url, f"{text} {query}") for url, text in zip(URLS, TEXTS, strict=True)]


PROGRAM = """
import sys
from embedserve_client.compat.ipc import (
    build_vector_index, fast_web_search_with_embeddings, generate_embeddings,
    get_embedding_model, search_index, web_search_with_embeddings,
)

docs = ["Cats sleep all day.", "The stock market fell.", "A dog chased the ball."]
urls = ["https://example.org/cats", "https://example.org/stocks", "https://example.org/dogs"]
model = get_embedding_model()
vectors = model.encode(docs, convert_to_tensor=True, normalize_embeddings=True, batch_size=2)
print(tuple(vectors.shape), model.get_sentence_embedding_dimension())
print(int(model.similarity(model.encode("The stock market fell."), vectors).argmax()))
print(generate_embeddings(docs).shape)
index, metadata = build_vector_index(docs, urls)
print(search_index("The stock market fell.", index, metadata, k=1)[0].metadata["url"])
model.fetch_pages = lambda query: zip(urls, docs)
print(web_search_with_embeddings("A dog chased the ball.")[0].url)
print(fast_web_search_with_embeddings("A dog chased the ball.")[0].url)
print(model.embed(docs).source, "torch" in sys.modules)
"""
OUTPUT = """({n}, {dim}) {dim}
1
({n}, {dim})
https://example.org/stocks
https://example.org/dogs
https://example.org/dogs
{source} True
"""


def run_program(**environment: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_a_program_runs_on_the_service() -> None:
    assert run_program() == OUTPUT.format(n=3, dim=DIM, source="service")


def test_a_program_runs_without_a_service() -> None:
    """`USE_IPC_EMBEDDING=false` computes in the process, with the default model."""
    output = run_program(USE_IPC_EMBEDDING="false", EMBEDDING_MODEL_NAME="all-MiniLM-L6-v2")
    assert output == OUTPUT.format(n=3, dim=384, source="local")


def test_functions_use_the_client_of_the_process(app: AppServer) -> None:
    assert ipc.get_embedding_model() is ipc.get_embedding_model()
    assert ipc.get_embedding_model().base_url == app.url
    assert equal_vectors(ipc.generate_embeddings(TEXTS), expected_vectors(*TEXTS))
    assert ipc.generate_embeddings("a").shape == (DIM,)


def test_threads_share_the_client() -> None:
    results: dict[int, Any] = {}
    clients = set[int]()

    def embed(i: int) -> None:
        clients.add(id(ipc.get_embedding_model()))
        results[i] = ipc.generate_embeddings(f"text {i}")

    work = [threading.Thread(target=embed, args=(i,)) for i in range(16)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(clients) == 1
    for i in range(16):
        assert equal_vectors(results[i], expected_vectors(f"text {i}")[0])


def test_the_index_is_one_of_faiss(tmp_path: Path) -> None:
    index, metadata = ipc.build_vector_index(TEXTS, URLS)
    assert metadata[1] == {"url": URLS[1], "document": TEXTS[1]}
    hits = ipc.search_index(QUERY, index, metadata, k=2)
    assert [hit.metadata["url"] for hit in hits] == [URLS[hit.position] for hit in hits]
    assert isinstance(index.faiss, faiss.Index)
    assert (index.faiss.ntotal, index.faiss.d) == (len(TEXTS), DIM)
    query = expected_vectors(QUERY, prompt="query")
    scores, positions = index.faiss.search(query, 2)
    assert sorted(positions[0].tolist()) == sorted(hit.position for hit in hits)
    np.testing.assert_allclose(scores[0], [hit.score for hit in hits], atol=1e-6)
    faiss.write_index(index.faiss, str(tmp_path / "index"))
    assert faiss.read_index(str(tmp_path / "index")).ntotal == len(TEXTS)
    assert VectorIndex().faiss.ntotal == 0


def test_arguments_that_do_not_fit_the_index_are_rejected(app: AppServer) -> None:
    with pytest.raises(IndexMismatchError, match="1 URLs for 2 documents"):
        ipc.build_vector_index(["a", "b"], ["u"])
    assert app.backend.groups == []
    index, metadata = ipc.build_vector_index(TEXTS, URLS)
    with pytest.raises(IndexMismatchError, match="built with the index"):
        ipc.search_index(QUERY, index, metadata[1:])
    with pytest.raises(TypeError, match="IndexFlatIP, which doesn't know the space"):
        ipc.search_index(QUERY, index.faiss, metadata)
    (hit,) = ipc.search_index(QUERY, index, list(range(len(metadata))), k=1)
    assert hit == Hit(hit.score, hit.position, hit.position)


def test_web_search_ranks_the_pages_that_the_program_fetches(app: AppServer) -> None:
    with pytest.raises(ValueError, match="no function that fetches pages"):
        ipc.web_search_with_embeddings(QUERY)
    hits = ipc.web_search_with_embeddings(QUERY, 3, fetch_pages=fetch_pages)
    assert len(hits) == 3
    assert all(hit.url in URLS and QUERY in hit.text for hit in hits)
    ipc.get_embedding_model().fetch_pages = fetch_pages
    assert ipc.web_search_with_embeddings(QUERY, 3) == hits
    app.backend.groups.clear()
    long_page = [("https://example.org/long", "word " * 2000)]
    assert len(ipc.fast_web_search_with_embeddings(QUERY, fetch_pages=lambda query: long_page)) == 1
    assert sum(len(group.texts) for group in app.backend.groups) == 2


def test_errors_of_fetching_reach_the_program() -> None:
    def fail(query: str) -> list[tuple[str, str]]:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        ipc.web_search_with_embeddings(QUERY, fetch_pages=fail)


class TestEnvironment:
    def test_the_service_is_that_of_the_client_by_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        assert ipc.EmbeddingClient.from_environment().base_url == "http://127.0.0.1:8000"
        monkeypatch.setenv("EMBEDSERVE_URL", "https://embed.example:9000")
        assert ipc.EmbeddingClient.from_environment().base_url == "https://embed.example:9000"
        monkeypatch.setenv("EMBEDDING_SERVER_HOST", "10.0.0.5")
        assert ipc.EmbeddingClient.from_environment().base_url == "https://10.0.0.5:9000"
        monkeypatch.setenv("EMBEDSERVE_URL", "")
        assert ipc.EmbeddingClient.from_environment().base_url == "http://10.0.0.5:8000"
        monkeypatch.setenv("EMBEDDING_SERVER_HOST", "::1")
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "5002")
        assert ipc.EmbeddingClient.from_environment().base_url == "http://[::1]:5002"

    def test_model_and_concurrency(
        self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", server.url.rpartition(":")[2])
        monkeypatch.setenv("EMBEDDING_MODEL_NAME", "org/model")
        monkeypatch.setenv("MAX_CONCURRENT_OPERATIONS", "2")
        barrier = threading.Barrier(2, timeout=10)

        def meet(handler: Any) -> None:
            barrier.wait()  # of two requests in flight
            handler.respond(200, {"data": [{"index": 0, "embedding": vector("a")}]})

        server.script = [meet] * 4
        with ipc.EmbeddingClient.from_environment() as client:
            assert client.encode(["a"] * 4, batch_size=1).shape == (4, 4)
        assert {body["model"] for body in server.bodies} == {"org/model"}

    def test_a_model_of_another_name_is_not_replaced_by_the_default_model(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("USE_IPC_EMBEDDING", "0")
        monkeypatch.setenv("EMBEDDING_MODEL_NAME", "all-mpnet-base-v2")
        with pytest.raises(LocalModelError, match="no model at all-mpnet-base-v2"):
            ipc.EmbeddingClient.from_environment().generate_embeddings("a")

    def test_a_local_model_computes_while_the_service_is_away(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_PORT", "9")
        monkeypatch.setenv("EMBEDSERVE_LOCAL_MODEL", "/no/such/model")
        with pytest.raises(LocalModelError):
            ipc.EmbeddingClient.from_environment().generate_embeddings("a")
        monkeypatch.setenv("EMBEDSERVE_FALLBACK", "none")
        assert ipc.EmbeddingClient.from_environment().fallback is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("USE_IPC_EMBEDDING", "maybe"),
            ("EMBEDDING_SERVER_PORT", "http"),
            ("MAX_CONCURRENT_OPERATIONS", "0"),
        ],
    )
    def test_malformed_variables_are_named(
        self, name: str, value: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
            ipc.get_embedding_model()

    def test_a_malformed_host_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EMBEDDING_SERVER_HOST", "/")
        with pytest.raises(InvalidURLError, match="http:///"):
            ipc.get_embedding_model()
