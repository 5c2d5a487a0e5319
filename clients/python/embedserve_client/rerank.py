"""Reranking: a query and documents → scores by a model that reads both together.

The wire format is that of `POST /v1/rerank` of Cohere, Jina and vLLM.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice

from embedserve_client.errors import ParseError
from embedserve_client.wire import Lane, Request, Response, post_request


@dataclass(frozen=True, slots=True)
class RerankResult:
    """A document and its score."""

    index: int  #: the position of the document in the call, from 0
    score: float  #: relevance to the query, 0 to 1
    document: str


@dataclass(frozen=True, slots=True)
class RerankParams:
    """The parameters of a rerank request, other than its texts."""

    top_n: int | None = None
    model: str | None = None
    lane: Lane | None = None  #: None: the service decides by the number of documents
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.top_n is not None and self.top_n < 1:
            raise ValueError(f"`top_n` must be at least 1, or None for all, not {self.top_n}.")


def rerank_request(query: str, documents: Sequence[str], params: RerankParams) -> Request:
    """Builds the request for the scores of documents."""
    body = {
        "query": query,
        "documents": list(documents),
        "model": params.model,
        "top_n": params.top_n,
        "use_cache": None if params.use_cache else False,
    }
    return post_request("/v1/rerank", body, params.lane)


def parse_ranking(
    response: Response, documents: Sequence[str], top_n: int | None
) -> list[RerankResult]:
    """Parses a successful response to a request; returns the best documents, best first.

    Raises:
        ParseError: the response doesn't hold finite scores of as many different documents.
    """
    try:
        results = [
            RerankResult(item["index"], float(item["relevance_score"]), documents[item["index"]])
            for item in json.loads(response.content)["results"]
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ParseError(f"The response doesn't hold scores of documents: {error!r}.") from None
    expected = len(documents) if top_n is None else min(top_n, len(documents))
    indices = {result.index for result in results if result.index >= 0}
    if len(results) != expected or len(indices) != expected:
        raise ParseError(
            f"The service returned scores of {len(indices)} documents instead of {expected}."
        )
    if not all(math.isfinite(result.score) for result in results):
        raise ParseError("The service returned a score that is NaN or infinity.")
    return results


def merge_rankings(
    rankings: Sequence[list[RerankResult]], sizes: Sequence[int], top_n: int | None
) -> list[RerankResult]:
    """Merges the rankings of one call that was split into several requests.

    Args:
        rankings: the results of each request; documents of equal score keep their order.
        sizes: the number of documents of each request.
        top_n: the number of best documents to return; None: all.
    """
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    shifted = (
        [replace(result, index=start + result.index) for result in ranking]
        for start, ranking in zip(starts, rankings, strict=True)
    )
    return list(islice(merge(*shifted, key=lambda result: -result.score), top_n))
