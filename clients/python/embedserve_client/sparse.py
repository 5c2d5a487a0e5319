"""Sparse vectors: weights of a vocabulary's tokens, as SPLADE models compute them.

The wire format is that of `POST /embed_sparse` of text-embeddings-inference.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from embedserve_client.errors import ParseError
from embedserve_client.vectors import Float32
from embedserve_client.wire import Lane, Request, Response, post_request

#: How a text beyond the model's token limit is handled: cut its end, or fail.
SparseTruncation = Literal["end", "error"]


class SparseVector(NamedTuple):
    """The non-zero components of a vector, by ascending index."""

    indices: NDArray[np.uint32]  #: ids of the vocabulary's tokens, shape (n,)
    values: Float32  #: their weights, shape (n,)


@dataclass(frozen=True, slots=True)
class SparseParams:
    """The parameters of a request for sparse vectors, other than its texts."""

    model: str | None = None
    input_type: str | None = None
    lane: Lane | None = None  #: None: the service decides by the number of texts
    truncation: SparseTruncation = "end"
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.truncation not in get_args(SparseTruncation):
            raise ValueError(
                "`truncation` must be `end` or `error` for sparse vectors, not "
                f"{self.truncation!r}."
            )


def sparse_request(texts: Sequence[str], params: SparseParams) -> Request:
    """Builds the request for the sparse vectors of texts."""
    body = {
        "inputs": list(texts),
        "model": params.model,
        "prompt_name": params.input_type,
        "truncate": False if params.truncation == "error" else None,
        "use_cache": None if params.use_cache else False,
    }
    return post_request("/embed_sparse", body, params.lane)


def parse_sparse_vectors(response: Response, n: int) -> list[SparseVector]:
    """Parses a successful response to a request with n texts.

    Raises:
        ParseError: the response doesn't hold n sparse vectors of finite components.
    """
    try:
        vectors = [_parse_vector(row) for row in json.loads(response.content)]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ParseError(f"The response doesn't hold {n} sparse vectors: {error!r}.") from None
    if len(vectors) != n:
        raise ParseError(f"The service returned {len(vectors)} vectors for {n} texts.")
    if not all(np.isfinite(vector.values).all() for vector in vectors):
        raise ParseError("The service returned a vector with NaN or infinity.")
    return vectors


def _parse_vector(row: list[dict[str, Any]]) -> SparseVector:
    indices = np.array([item["index"] for item in row], dtype=np.uint32)
    values = np.array([item["value"] for item in row], dtype=np.float32)
    order = np.argsort(indices)
    return SparseVector(indices[order], values[order])
