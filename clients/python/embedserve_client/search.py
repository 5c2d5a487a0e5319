"""Ranking and search functions: query and documents → hits, best first.

`rank` orders a few documents without an index. `generate_embeddings`, `build_vector_index` and
`search_index` have the signatures of a shared model server, so its users only change an import. All
four embed with the client that is passed; the last three default to `default_client()`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from embedserve_client.client import Client
from embedserve_client.errors import IndexMismatchError
from embedserve_client.index import Hit, VectorIndex
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Float32, Vectors


def rank(query: str, documents: Sequence[str], client: Client, k: int | None = None) -> list[Hit]:
    """Ranks documents by their cosine similarity to a query, best first; ties keep their order.

    Args:
        query: the search query.
        documents: pages, passages, …; may be empty.
        client: embeds the query and the documents.
        k: the maximum number of hits; None: all documents.

    Returns:
        Hits with the position in `documents` and the document as metadata.

    Raises:
        ValueError: `documents` is a string, or `k` is below 1.
        EmbedError: the query or the documents can't be embedded.
    """
    if isinstance(documents, str):
        raise ValueError("`documents` is one string. Pass a list of strings.")
    if k is not None and k < 1:
        raise ValueError(f"`k` must be at least 1, or None for all, not {k}.")
    if not documents:
        return []
    query_vector, vectors = client.embed_query(query), client.embed_documents(documents)
    guard = SpaceGuard()  # the client itself may allow mixed spaces
    guard.check(vectors.space)
    guard.check(query_vector.space)
    scores = _cosine_similarity(query_vector, vectors)
    order = np.argsort(-scores, kind="stable")[:k]
    return [
        Hit(score, position, documents[position])
        for score, position in zip(scores[order].tolist(), order.tolist(), strict=True)
    ]


def generate_embeddings(texts: str | Sequence[str], *, client: Client | None = None) -> Vectors:
    """Embeds texts, in order: float32 of shape (n, dim), or (dim,) for a single string.

    Raises:
        EmbedError: the texts can't be embedded.
    """
    return (client or default_client()).embed(texts)


def build_vector_index(
    docs: Sequence[str], urls: Sequence[str], *, client: Client | None = None
) -> tuple[VectorIndex, list[dict[str, Any]]]:
    """Returns an index of documents and their metadata, `{"url": …, "document": …}`, in order.

    Raises:
        IndexMismatchError: the number of URLs isn't the number of documents.
        EmbedError: the documents can't be embedded.
    """
    if len(docs) != len(urls):
        raise IndexMismatchError(
            f"There are {len(urls)} URLs for {len(docs)} documents. Pass one per document."
        )
    metadata = [{"url": url, "document": doc} for url, doc in zip(urls, docs, strict=True)]
    return VectorIndex.build(docs, client or default_client(), metadata), metadata


def search_index(
    query: str,
    index: VectorIndex,
    metadata: Sequence[Any],
    k: int = 10,
    *,
    client: Client | None = None,
) -> list[Hit]:
    """Returns the k documents most similar to a query, best first, with their metadata.

    Args:
        query: the search query.
        index: an index from `build_vector_index` or `VectorIndex.load`.
        metadata: a value for each document, in the order of the index.
        k: the maximum number of hits.
        client: embeds the query; None: the client of the index.

    Raises:
        IndexMismatchError: the number of values isn't the number of vectors.
        SpaceMismatchError: the client's vectors can't be compared with those in the index.
        ValueError: `k` is below 1.
        EmbedError: the query can't be embedded.
    """
    if len(metadata) != len(index):
        raise IndexMismatchError(
            f"There are {len(metadata)} metadata values for an index of {len(index)} vectors. Pass "
            "the list that was built with the index."
        )
    hits = index.search(query, k, client=client or index.client or default_client())
    return [hit._replace(metadata=metadata[hit.position]) for hit in hits]


@cache
def default_client() -> Client:
    """Returns a client with the settings of the environment, created at the first call."""
    return Client()


def _cosine_similarity(query: Float32, documents: Float32) -> Any:
    """Returns the cosine of each document, shape (n, dim), to a query, shape (dim,).

    The result is float64 of shape (n,). Every row is summed in the same order, so equal documents
    get bit-identical scores. The cosine to a zero vector is 0.
    """
    left, right = np.asarray(query, np.float64), np.asarray(documents, np.float64)
    norms = np.sqrt((right * right).sum(axis=1)) * np.sqrt((left * left).sum())
    return np.clip((right * left).sum(axis=1) / np.where(norms == 0, 1, norms), -1, 1)
