"""Ranking without an index: query and documents or web pages → hits, best first."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from embedserve_client.client import Client
from embedserve_client.hit import Hit
from embedserve_client.space import SpaceGuard
from embedserve_client.vectors import Float32, Vectors

#: Characters of a passage: most are within the token limit of small models.
_PASSAGE_CHARS = 1000
#: Above this cosine, two passages say the same.
_DUPLICATE_COSINE = 0.98


class PageHit(NamedTuple):
    """A passage of a web page that matches a query."""

    score: float  #: cosine similarity, -1 to 1
    url: str
    text: str


class _Ranking(NamedTuple):
    scores: Any  #: float64, shape (n,)
    order: Any  #: positions, best first
    vectors: Vectors  #: shape (n, dim)


def rank(
    query: str,
    documents: Sequence[str],
    client: Client,
    k: int | None = None,
    *,
    model: str | None = None,
) -> list[Hit]:
    """Ranks documents by their cosine similarity to a query, best first; ties keep their order.

    `Client.rerank` ranks them by a reranker.

    Args:
        query: the search query.
        documents: pages, passages, …; may be empty.
        client: embeds the query and the documents.
        k: the maximum number of hits; None: all documents.
        model: a name or alias of the model; None: the client's.

    Returns:
        Hits with the position in `documents` and the document as metadata.

    Raises:
        ValueError: `documents` is a string, or `k` is below 1.
        EmbedError: the query or the documents can't be embedded.
    """
    if isinstance(documents, str):
        raise ValueError("`documents` is one string. Pass a list of strings.")
    _check_k(k)
    if not documents:
        return []
    scores, order, _ = _rank(query, documents, client, model)
    return [
        Hit(float(scores[position]), int(position), documents[position]) for position in order[:k]
    ]


def rank_pages(
    query: str,
    pages: Iterable[tuple[str, str]],
    client: Client,
    k: int = 10,
    *,
    passages_per_page: int | None = None,
    model: str | None = None,
) -> list[PageHit]:
    """Ranks the passages of web pages by their cosine similarity to a query, best first.

    Pages are split into passages of up to 1,000 characters. Passages that say the same as a better
    one are left out.

    Args:
        query: the search query.
        pages: the URL and the text of each page, without markup. Pages without text are skipped.
        client: embeds the query and the passages.
        k: the maximum number of hits.
        passages_per_page: the number of passages of each page, from its start; None: all.
        model: a name or alias of the model; None: the client's.

    Raises:
        ValueError: a page isn't a pair of strings, or a number is below 1.
        EmbedError: the query or the passages can't be embedded.
    """
    _check_k(k)
    if passages_per_page is not None and passages_per_page < 1:
        raise ValueError(f"`passages_per_page` must be at least 1, not {passages_per_page}.")
    urls = dict[str, str]()
    for url, text in _page_items(pages):
        words = " ".join(text.split())
        for passage in islice(textwrap.wrap(words, _PASSAGE_CHARS), passages_per_page):
            urls.setdefault(passage, url)
    passages = list(urls)
    if not passages:
        return []
    scores, order, vectors = _rank(query, passages, client, model)
    best = list[int]()
    for position in order.tolist():
        duplicates = _cosine_similarity(vectors[position], vectors[best]) > _DUPLICATE_COSINE
        if not duplicates.any():
            best.append(position)
        if len(best) == k:
            break
    return [PageHit(float(scores[i]), urls[passages[i]], passages[i]) for i in best]


def _page_items(pages: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for i, page in enumerate(pages):
        try:
            url, text = page
        except (TypeError, ValueError):
            url = text = None  # type: ignore[assignment]
        if not isinstance(url, str) or not isinstance(text, str | None):
            raise ValueError(f"Page {i} isn't a pair of two strings, its URL and its text.")
        if text:
            yield url, text


def _check_k(k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"`k` must be at least 1, or None for all, not {k}.")


def _rank(query: str, documents: Sequence[str], client: Client, model: str | None) -> _Ranking:
    query_vector = client.embed_query(query, model=model)
    vectors = client.embed_documents(documents, model=model)
    guard = SpaceGuard()  # the client itself may allow mixed spaces
    guard.check(vectors.space)
    guard.check(query_vector.space)
    scores = _cosine_similarity(query_vector, vectors)
    return _Ranking(scores, np.argsort(-scores, kind="stable"), vectors)


def _cosine_similarity(query: Float32, documents: Float32) -> Any:
    """Returns the cosine of each document, shape (n, dim), to a query, shape (dim,).

    The result is float64 of shape (n,). Every row is summed in the same order, so equal documents
    get bit-identical scores. The cosine to a zero vector is 0.
    """
    left, right = np.asarray(query, np.float64), np.asarray(documents, np.float64)
    norms = np.sqrt((right * right).sum(axis=1)) * np.sqrt((left * left).sum())
    return np.clip((right * left).sum(axis=1) / np.where(norms == 0, 1, norms), -1, 1)
