"""How far two sets of vectors of the same texts agree: which neighbours a search would keep."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedserve_client.vectors import Float32, unit_length

NEIGHBOURS = 10
MAX_QUERIES = 1000
#: Bounds the memory for scores to 256 times the size of the sample.
_BLOCK_QUERIES = 256


class Sample(NamedTuple):
    """Rows of an index."""

    texts: list[str]
    old: Float32  #: shape (n, old dim)
    new: Float32  #: shape (n, new dim)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares are from 0 to 1, over the queries. A query's neighbours exclude the query itself."""

    rows: int  #: sampled rows with distinct texts
    queries: int  #: rows whose neighbours among all sampled rows were compared
    neighbours: int  #: of each query
    seed: int
    kept: float  #: mean share of the nearest neighbours that are the same
    kept_first: float  #: share of the queries whose nearest neighbour is the same
    mean_cosine: float | None  #: of old and new vectors; None: they differ in dimensions


def agreement(sample: Sample, seed: int) -> Agreement | None:
    """Compares the neighbours in old and new vectors; None: there are fewer than three texts.

    Rows with the text of an earlier row are left out: their order among neighbours says nothing.

    Args:
        sample: in an order that doesn't depend on the texts; the first rows are the queries.
        seed: the one that selected the sample.
    """
    distinct = list({text: i for i, text in reversed(list(enumerate(sample.texts)))}.values())[::-1]
    old, new = unit_length(sample.old[distinct]), unit_length(sample.new[distinct])
    n = len(distinct)
    if n < 3:
        return None
    k, queries = min(NEIGHBOURS, n - 1), min(MAX_QUERIES, n)
    kept, first = 0.0, 0
    for start in range(0, queries, _BLOCK_QUERIES):
        stop = min(start + _BLOCK_QUERIES, queries)
        for a, b in zip(_nearest(old, start, stop, k), _nearest(new, start, stop, k), strict=True):
            kept += len(np.intersect1d(a, b)) / k
            first += int(a[0] == b[0])
    cosine = None
    if old.shape == new.shape:
        cosine = float(np.einsum("ij,ij->i", old, new, dtype=np.float64).mean())
    return Agreement(n, queries, k, seed, kept / queries, first / queries, cosine)


def _nearest(vectors: Float32, start: int, stop: int, k: int) -> NDArray[np.intp]:
    """Returns the k nearest rows of the rows `start` to `stop`, best first, without themselves."""
    scores = vectors[start:stop] @ vectors.T
    scores[np.arange(stop - start), np.arange(start, stop)] = -np.inf
    nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, nearest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1)
