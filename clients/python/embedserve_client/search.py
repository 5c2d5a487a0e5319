"""Texts in the order of what they have to do with a query.

`rank` orders a handful of them, and needs no index. The other three functions are those of a shared
model server, under the names that its users call: they change an import. All of them embed with the
client that is given, or else with one of the environment's (`EMBEDSERVE_URL`, …), as it is at the
first call.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from embedserve_client.client import Client
from embedserve_client.errors import IndexMismatch
from embedserve_client.index import Hit, VectorIndex
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Float32, Vectors


def rank(query: str, documents: Sequence[str], client: Client, top: int | None = None) -> list[Hit]:
    """Documents by their cosine to a query, best first; of equal ones those that came first.

    Args:
        query: what is looked for.
        documents: pages, passages, …; none are ranked without asking anybody.
        client: embeds them.
        top: how many of them; None: all.

    Returns:
        For each a hit, with its place in `documents` and itself as metadata.

    Raises:
        ValueError: `documents` is one string, or `top` is below 1.
        EmbedError: whatever kept the vectors from coming.
    """
    if isinstance(documents, str):
        raise ValueError("`documents` is one string. Give a list of them.")
    if top is not None and top < 1:
        raise ValueError(f"`top` is {top}; ask for 1 or more, or leave it out for all.")
    if not documents:
        return []
    asked, given = client.embed_query(query), client.embed_documents(documents)
    guard = SpaceGuard()  # a client may be told to let spaces mix; these two have to meet
    guard.check(given.space)
    guard.check(asked.space)
    scores = _cosines(asked, given)
    best = np.argsort(-scores, kind="stable")[:top]
    return [
        Hit(score, place, documents[place])
        for score, place in zip(scores[best].tolist(), best.tolist(), strict=True)
    ]


def generate_embeddings(texts: str | Sequence[str], *, client: Client | None = None) -> Vectors:
    """Vectors of texts, in order: float32, shape (n, dim); of one string (dim,).

    Raises:
        EmbedError: whatever kept them from coming.
    """
    return (client or _of_the_environment()).embed(texts)


def build_vector_index(
    docs: Sequence[str], urls: Sequence[str], *, client: Client | None = None
) -> tuple[VectorIndex, list[dict[str, Any]]]:
    """An index of documents, and what is known of each: `{"url": …, "document": …}`, in order.

    Raises:
        IndexMismatch: there are more or fewer addresses than documents.
        EmbedError: whatever kept the vectors from coming.
    """
    if len(docs) != len(urls):
        raise IndexMismatch(f"{len(urls)} addresses came for {len(docs)} documents. Give one each.")
    metadata = [{"url": url, "document": doc} for url, doc in zip(urls, docs, strict=True)]
    return VectorIndex.build(docs, client or _of_the_environment(), metadata), metadata


def search_index(
    query: str,
    index: VectorIndex,
    metadata: Sequence[Any],
    k: int = 10,
    *,
    client: Client | None = None,
) -> list[Hit]:
    """The k documents next to a query, best first, each with what `metadata` knows of it.

    Args:
        query: what is looked for.
        index: of `build_vector_index`, or a loaded one.
        metadata: something for each document, in the order of the index.
        k: how many.
        client: embeds the query; None: the one that the index was built with.

    Raises:
        IndexMismatch: `metadata` isn't of this index.
        SpaceMismatch: the client's vectors can't be compared with those in the index.
        ValueError: `k` is below 1.
        EmbedError: whatever kept the query's vector from coming.
    """
    if len(metadata) != len(index):
        raise IndexMismatch(
            f"{len(metadata)} values of metadata came for an index of {len(index)} vectors. Give "
            "those that were made with it."
        )
    hits = index.search(query, k, client=client or index.client or _of_the_environment())
    return [hit._replace(metadata=metadata[hit.place]) for hit in hits]


@cache
def _of_the_environment() -> Client:
    return Client()


def _cosines(query: Float32, documents: Float32) -> Any:
    """Cosines of documents, shape (n, dim), to a query, shape (dim,); float64, shape (n,).

    Each is summed up in the same order, so that equal documents get equal ones to the last bit;
    what has no length is next to nothing.
    """
    left, right = np.asarray(query, np.float64), np.asarray(documents, np.float64)
    lengths = np.sqrt((right * right).sum(axis=1)) * np.sqrt((left * left).sum())
    return np.clip((right * left).sum(axis=1) / np.where(lengths == 0, 1, lengths), -1, 1)
