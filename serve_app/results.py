"""Results of jobs: one class for each kind of output.

A result answers for itself what handler, admission and headers need of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np

from serve_app.cost import Cost
from serve_app.inputs import Input
from serve_app.types import (
    NO_TIMINGS,
    Bool,
    Float32,
    Int32,
    Row,
    Timings,
    UInt8,
)

T = TypeVar("T")


class ComputedResult:
    """The result of a job that runs the model, in the order of its inputs."""

    __slots__ = ()

    model: str
    token_counts: Int32  #: shape (n,); after truncation, special tokens included
    truncated: Bool  #: shape (n,); True where the text was over the token limit
    tiers: UInt8  #: shape (n,); the `Tier` of each input
    timings: Timings
    characters: int  #: total length of the texts; token ids count as zero
    cost: Cost | None  #: None: the model is free

    @property
    def total_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(self.token_counts.tolist())

    @property
    def billed_tokens(self) -> int:
        """Tokens that the client pays for: all of them, cached ones included."""
        return self.total_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the inputs whose outputs came from the cache."""
        pairs = zip(self.token_counts.tolist(), self.tiers.tolist(), strict=True)
        return sum(tokens for tokens, tier in pairs if tier)

    @property
    def has_computed(self) -> bool:
        """Whether the engine computed at least one output."""
        return 0 in self.tiers.tolist()

    @property
    def parts(self) -> Sequence["ComputedResult"]:
        """The results that the metrics count: this one."""
        return (self,)

    def with_cost(self, cost: Cost) -> Self:
        """Returns the result with the cost of its request."""
        return replace(self, cost=cost)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class EmbedResult(ComputedResult):
    """The result of an `EmbedJob`."""

    model: str
    vectors: Float32  #: shape (n, dimensions)
    token_counts: Int32
    truncated: Bool
    tiers: UInt8
    timings: Timings = NO_TIMINGS
    raw: Float32 | None = None  #: shape (n, dim); the model's unmodified vectors; None: `vectors`
    characters: int = 0
    inputs: Sequence[Input] = ()  #: as they were embedded: with images in place of their URLs
    json_rows: Sequence[Any] | None = None  #: the vectors as JSON, serialized ahead; None: not yet
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class _RaggedResult(ComputedResult):
    """A result whose outputs differ in length."""

    model: str
    vectors: list[Row]
    token_counts: Int32
    truncated: Bool
    tiers: UInt8
    timings: Timings = NO_TIMINGS
    characters: int = 0
    cost: Cost | None = None


class TokenVectorsResult(_RaggedResult):
    """The result of a `TokenVectorsJob`: the model's last hidden layer, before pooling.

    Each of `vectors` has shape (tokens, width), float32, special tokens included.
    """

    __slots__ = ()


class SparseResult(_RaggedResult):
    """The result of a `SparseJob`.

    Each of `vectors` is of `SPARSE_DTYPE`, by ascending index, without zeros.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ScoreResult(ComputedResult):
    """The result of a `ScoreJob`."""

    model: str
    logits: Float32  #: shape (n, labels)
    token_counts: Int32
    truncated: Bool
    tiers: UInt8
    labels: tuple[str, ...]  #: name of each column
    activation: str = "sigmoid"  #: the model's own: `sigmoid`, `softmax` or `identity`
    timings: Timings = NO_TIMINGS
    characters: int = 0
    #: Shape (n,); number of query vectors if the scores are sums over them (MaxSim), else None.
    query_vectors: Int32 | None = None
    cost: Cost | None = None

    @property
    def scores(self) -> Float32:
        """The scores as the model's library returns them, shape (n, labels)."""
        return activate(self.logits, self.activation)

    @property
    def probabilities(self) -> Float32:
        """The scores as values from 0 to 1, shape (n, labels).

        Sigmoid of a single label, softmax of several; for MaxSim, the mean over query vectors.
        """
        if self.query_vectors is not None:
            means = self.logits / self.query_vectors[:, None]
            return np.asarray(means.clip(0, 1), dtype=np.float32)
        return activate(self.logits, "sigmoid" if self.logits.shape[1] == 1 else "softmax")


def activate(logits: Float32, activation: str) -> Float32:
    """Returns logits of shape (n, labels) after `sigmoid`, `softmax` or `identity`, float32."""
    if activation == "identity":
        return logits
    if activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), dtype=np.float32)


class BatchResult(list[ComputedResult]):
    """The results of a `BatchJob`, in the order of its jobs."""

    cost: Cost | None = None  #: of all jobs; None: the model is free

    @property
    def model(self) -> str:
        """The model that computed all results."""
        return self[0].model

    @property
    def billed_tokens(self) -> int:
        """Tokens that the client pays for, summed over the jobs."""
        return sum(result.billed_tokens for result in self)

    @property
    def truncated(self) -> Bool:
        """Shape (texts of all jobs,); True where the text was over the token limit."""
        return np.concatenate([result.truncated for result in self])

    @property
    def has_computed(self) -> bool:
        """Whether the engine computed at least one output."""
        return any(result.has_computed for result in self)

    @property
    def parts(self) -> Sequence[ComputedResult]:
        """The results that the metrics count."""
        return self

    def with_cost(self, cost: Cost) -> Self:
        """Returns the results with the cost of their request."""
        self.cost = cost
        return self


class TokenizerResult(list[T]):
    """The result of a `TokenizeJob` or a `DecodeJob`, in the order of its rows."""

    billed_tokens = 0
    has_computed = False
    cost = None

    @property
    def truncated(self) -> Bool:
        """Shape (0,): these jobs never truncate."""
        return np.zeros(0, dtype=np.bool_)

    @property
    def parts(self) -> Sequence[ComputedResult]:
        """Empty: the model doesn't run."""
        return ()

    def with_cost(self, cost: Cost) -> Self:
        """Returns the result itself: tokenization is free."""
        return self


Result = ComputedResult | BatchResult | TokenizerResult[Any]
