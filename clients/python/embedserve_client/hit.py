"""Search results, and their order by a reranker."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from embedserve_client.errors import IndexMismatchError

if TYPE_CHECKING:
    from embedserve_client.client import Client


class Hit(NamedTuple):
    """A search result."""

    score: float  #: cosine similarity, -1 to 1; of a reranker: relevance, 0 to 1
    position: int  #: in the order in which vectors were added, from 0
    metadata: Any  #: the value that was added with the vector


def rerank_hits(
    query: str,
    candidates: Sequence[Hit],
    k: int,
    client: "Client",
    model: str | None,
    document: Callable[[Any], str] | None,
) -> list[Hit]:
    """Returns the k candidates that a reranker scores highest, with its scores.

    Args:
        query: the search query.
        candidates: hits of a search.
        k: the maximum number of hits.
        client: sends the texts to the service.
        model: a name or alias of the reranker; None: that of `Client.rerank`.
        document: returns the text of a hit's metadata; None: the metadata are the texts.

    Raises:
        IndexMismatchError: the metadata aren't texts.
        EmbedError: the candidates can't be reranked.
    """
    texts = [document(hit.metadata) if document else hit.metadata for hit in candidates]
    for text, hit in zip(texts, candidates, strict=True):
        if not isinstance(text, str):
            raise IndexMismatchError(
                f"The metadata of vector {hit.position} isn't a text to rerank. Pass `document=`, "
                'a function that returns it: `document=lambda metadata: metadata["text"]`.'
            )
    return [
        candidates[result.index]._replace(score=result.score)
        for result in client.rerank(query, texts, k, model=model)
    ]
