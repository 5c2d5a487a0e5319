"""The Python client, with a tiny model of each kind: it returns what their library computes."""

import base64
import io
import re
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
from PIL import Image

from embedserve_client import Client, HTTPError, SparseVector, VectorIndex
from embedserve_client.errors import IndexMismatchError
from embedserve_client.vectors import Float32
from tests.clients.kinds_server import (
    CLASSIFIER,
    DENSE,
    DOCUMENTS,
    IMAGE,
    QUERY,
    RERANKER,
    SPARSE,
    TOLERANCE,
    KindsServer,
)
from tests.clients.node import PACKAGE


@pytest.fixture
def client(kinds: KindsServer) -> Iterator[Client]:
    with Client(kinds.url, max_retries=0) as client:
        yield client


def picture(color: str) -> tuple[Image.Image, bytes]:
    image, buffer = Image.new("RGB", (40, 30), color), io.BytesIO()
    image.save(buffer, "PNG")
    return image, buffer.getvalue()


def test_reranks(client: Client, kinds: KindsServer) -> None:
    results = client.rerank(QUERY, DOCUMENTS)
    assert [result.index for result in results] == kinds.ranking
    assert [result.document for result in results] == [DOCUMENTS[i] for i in kinds.ranking]
    scores = kinds.scores[kinds.ranking]
    np.testing.assert_allclose([r.score for r in results], scores, atol=TOLERANCE)
    with Client(kinds.url, batch_size=2) as splitting:
        # Scores depend on the batch in the last bits, and so does the order of equal documents.
        merged = splitting.rerank(QUERY, DOCUMENTS, 3)
    assert [result.document for result in merged] == [DOCUMENTS[i] for i in kinds.ranking[:3]]
    best = client.rerank(QUERY, DOCUMENTS, 2, model=RERANKER, lane="interactive", use_cache=False)
    assert [result.index for result in best] == kinds.ranking[:2]


def test_a_multi_vector_model_reranks(client: Client) -> None:
    results = client.rerank(QUERY, [*DOCUMENTS, QUERY], model="tiny/multi-vector")
    assert sorted(result.index for result in results) == list(range(len(DOCUMENTS) + 1))
    assert [r.score for r in results] == sorted((r.score for r in results), reverse=True)


def test_a_model_that_cant_rerank_is_an_error_that_names_it(client: Client) -> None:
    with pytest.raises(HTTPError, match=DENSE):
        client.rerank(QUERY, DOCUMENTS, model=DENSE)
    with pytest.raises(HTTPError, match=r"isn't served here\. Served:") as raised:
        client.rerank(QUERY, DOCUMENTS, model="other")
    assert raised.value.status == 404


def test_classifies(client: Client, kinds: KindsServer) -> None:
    # A reranker is listed before the classifier.
    rows = client.classify(DOCUMENTS)
    for row, scores in zip(rows, kinds.class_scores(DOCUMENTS), strict=True):
        by_label = {item.label: item.score for item in row}
        np.testing.assert_allclose([by_label["bad"], by_label["good"]], scores, atol=TOLERANCE)
        assert [item.score for item in row] == sorted(by_label.values(), reverse=True)
    named = client.classify(DOCUMENTS[0], model=CLASSIFIER, lane="interactive", use_cache=False)
    assert [item.label for item in named] == [item.label for item in rows[0]]
    with pytest.raises(HTTPError, match="not a classifier"):
        client.classify(DOCUMENTS, model=DENSE)


def as_dense(vectors: list[SparseVector], size: int) -> Float32:
    rows = np.zeros((len(vectors), size), dtype=np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[vector.indices] = vector.values
    return rows


def test_embeds_sparsely(client: Client, kinds: KindsServer) -> None:
    expected = kinds.sparse_vectors(DOCUMENTS)
    vectors = client.embed_sparse(DOCUMENTS)
    np.testing.assert_allclose(as_dense(vectors, expected.shape[1]), expected, atol=1e-4)
    options = client.embed_sparse(
        DOCUMENTS[0], model=SPARSE, input_type="query", truncation="error", use_cache=False
    )
    np.testing.assert_allclose(as_dense([options], expected.shape[1]), expected[:1], atol=1e-4)
    with pytest.raises(HTTPError, match=r"Text 0 .*longer"):
        client.embed_sparse(["word " * 99], truncation="error")


def test_embeds_images_in_the_space_of_their_texts(client: Client, kinds: KindsServer) -> None:
    pictures = [picture(color) for color in ("red", "green", "blue")]
    vectors = client.embed_images([content for _, content in pictures])
    expected = kinds.vectors(IMAGE, [image for image, _ in pictures])
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
    texts = client.embed(DOCUMENTS, model=IMAGE)
    assert texts.space == client.embed_images(pictures[0][1], model=IMAGE).space == vectors.space
    np.testing.assert_allclose(texts, kinds.vectors(IMAGE, DOCUMENTS), atol=TOLERANCE)
    with pytest.raises(HTTPError):
        client.embed_images(b"GIF89a, but not really")


@pytest.mark.parametrize("api", ["openai", "infinity", "infinity-list", "cohere", "cohere-v4"])
def test_requests_with_images_select_the_default_image_model(kinds: KindsServer, api: str) -> None:
    image, content = picture("red")
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    url = {"type": "image_url", "image_url": {"url": uri}}
    path, body = {
        "openai": ("/v1/embeddings", {"input": [{"image": uri}]}),
        "infinity": ("/embeddings", {"input": [uri], "modality": "image"}),
        "infinity-list": ("/v1/embeddings", {"input": [uri], "modality": ["image"]}),
        "cohere": ("/v2/embed", {"images": [uri], "input_type": "image"}),
        "cohere-v4": ("/v2/embed", {"inputs": [{"content": [url]}], "input_type": "image"}),
    }[api]
    reply = httpx2.post(kinds.url + path, json=body, timeout=30).json()
    vectors = reply["embeddings"]["float"] if "embeddings" in reply else None
    vectors = vectors or [item["embedding"] for item in reply["data"]]
    np.testing.assert_allclose(vectors, kinds.vectors(IMAGE, [image]), atol=TOLERANCE)


def test_each_model_has_its_own_vectors_health_and_description(
    client: Client, kinds: KindsServer
) -> None:
    assert client.models() == list(kinds.folders)
    np.testing.assert_allclose(
        client.embed(DOCUMENTS), kinds.vectors(DENSE, DOCUMENTS), atol=TOLERANCE
    )
    for name in kinds.folders:
        assert client.is_healthy(model=name)
        assert client.info(model=name)["model_id"] == name
    assert client.info()["model_id"] == DENSE
    with Client(kinds.url, model=IMAGE) as images:
        assert images.info()["model_id"] == IMAGE
        np.testing.assert_allclose(
            images.encode(DOCUMENTS), kinds.vectors(IMAGE, DOCUMENTS), atol=TOLERANCE
        )


def test_tokens_are_those_of_the_clients_model(kinds: KindsServer) -> None:
    with Client(kinds.url) as dense, Client(kinds.url, model=IMAGE) as images:
        assert (
            dense.tokenize(["a text"])["input_ids"].tolist()
            != images.tokenize(["a text"])["input_ids"].tolist()
        )


def test_an_index_reranks_its_candidates(client: Client, kinds: KindsServer) -> None:
    index = VectorIndex.build(DOCUMENTS, client, model=DENSE)
    hits = index.search(QUERY, k=2, rerank=len(DOCUMENTS))
    # The order of candidates decides between equal scores.
    assert {hit.metadata for hit in hits} == {DOCUMENTS[i] for i in kinds.ranking[:2]}
    best = kinds.scores[kinds.ranking[:2]]
    np.testing.assert_allclose([hit.score for hit in hits], best, atol=TOLERANCE)
    candidates = index.search(QUERY, k=3)
    (hit,) = index.search(QUERY, k=1, rerank=3, rerank_model=RERANKER)
    expected = max(candidates, key=lambda candidate: kinds.scores[candidate.position])
    assert (hit.position, hit.metadata) == (expected.position, expected.metadata)


def test_an_index_needs_the_texts_of_its_candidates(client: Client) -> None:
    metadata = [{"id": i, "body": document} for i, document in enumerate(DOCUMENTS)]
    index = VectorIndex.build(DOCUMENTS, client, metadata)
    with pytest.raises(IndexMismatchError, match="Pass `document=`"):
        index.search(QUERY, k=2, rerank=3)
    hits = index.search(QUERY, k=2, rerank=3, document=lambda metadata: metadata["body"])
    assert all(hit.metadata in metadata for hit in hits)
    with pytest.raises(ValueError, match="rerank=1"):
        index.search(QUERY, k=2, rerank=1)
    with pytest.raises(ValueError, match="a query that is a string"):
        index.search(client.embed_query(QUERY), k=2, rerank=3)  # type: ignore[call-overload]
    assert VectorIndex(client=client).search(QUERY, k=2, rerank=3) == []


def test_the_example_of_the_readme(kinds: KindsServer, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (PACKAGE.parent / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (example,) = (block for block in blocks if "client.rerank" in block)
    exec(example.replace("http://127.0.0.1:8000", kinds.url), {})
    lines = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"[012] [01]\.\d+ [A-Z].*\.", line) for line in lines[:2])
    assert lines[0].endswith(lines[2])  # both rank all documents
    assert all(re.fullmatch(r"(bad|good) [01]\.\d+", line) for line in lines[3:5])
    assert lines[5:] == ["uint32 float32"]
