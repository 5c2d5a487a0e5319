"""The data types that packages exchange: groups of texts flow down to the engine, outputs flow up.

All of them are small and picklable, and cross Ray handles unchanged.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from serve_app.inputs import Input, estimated_tokens, with_prompt
from serve_app.spans import Span, TraceContext, UnrecordedSpan
from serve_app.tasks import Task

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]

#: The output of one input: a vector, one row per token, or `SPARSE_DTYPE` weights.
Row = NDArray[Any]
#: An item of a sparse vector: a token id of the vocabulary and its weight.
SPARSE_DTYPE = np.dtype([("index", "<u4"), ("weight", "<f4")])

#: Component type of cached vectors. `float16` and `int8` round, so their vectors are spaces of
#: their own.
CacheDtype = Literal["float32", "float16", "int8"]

#: The priority class of a job: `interactive` texts are computed before `bulk` ones.
Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = get_args(Lane)

#: The treatment of a text over the token limit: drop tokens at its `end` or its `start`, raise an
#: `error`, or embed each `chunk` and return the mean of the chunks, weighted by their tokens.
Truncation = Literal["end", "start", "error", "chunk"]


class Tier(IntEnum):
    """The source of a vector."""

    COMPUTED = 0  #: the engine
    L1 = 1  #: the in-memory cache of a process
    L2 = 2  #: the shared Redis or Valkey server
    JOINED = 3  #: the engine, for another request that was in flight


def count_computed(tiers: UInt8) -> int:
    """Returns how many of n outputs the engine computed; `tiers` has shape (n,)."""
    values: list[int] = tiers.tolist()
    return values.count(Tier.COMPUTED)


def sum_computed(token_counts: Int32, tiers: UInt8) -> int:
    """Returns the tokens of the outputs that the engine computed; both have shape (n,)."""
    return int(token_counts[tiers == Tier.COMPUTED].sum())


class Timings(NamedTuple):
    """The time that a group of texts spent in each stage, in seconds."""

    cache_s: float = 0.0  #: reads and writes of all tiers
    queue_s: float = 0.0  #: waiting for the engine
    tokenize_s: float = 0.0
    infer_s: float = 0.0  #: the model batches that contained its texts
    load_s: float = 0.0  #: loading the model, if it wasn't in memory


#: Timings of skipped work.
NO_TIMINGS = Timings()


@dataclass(slots=True)
class TextGroup:
    """The distinct inputs of one job: the unit that the cache and the scheduler work on."""

    texts: tuple[Input, ...]
    prompt: str = ""  #: prefix of each text, but not of token ids; part of the cache key
    use_cache: bool = True
    lane: Lane = "interactive"
    #: When the caller gives up, by `time.monotonic`. Texts that are still queued then are dropped.
    deadline_s: float = math.inf
    #: The cache key of each text; empty until the first cache has computed them.
    keys: tuple[bytes, ...] = ()
    task: Task = "embed"
    is_resent: bool = False  #: another replica had it before, and has counted its arrival
    span: Span | None = None  #: of the operation that waits for the group; None: not traced

    @property
    def prompted_inputs(self) -> list[Input]:
        """The model's inputs: texts with the prompt prepended, token ids unchanged."""
        return [with_prompt(text, self.prompt) for text in self.texts]

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens the texts have, special ones included."""
        return sum(estimated_tokens(text) + 1 for text in self.texts)

    def subset(self, indices: Sequence[int]) -> "TextGroup":
        """Returns a group of some of the texts, with their keys."""
        if len(indices) == len(self.texts):
            return self
        texts = tuple(self.texts[i] for i in indices)
        keys = tuple(self.keys[i] for i in indices) if self.keys else ()
        return replace(self, texts=texts, keys=keys)

    def __reduce__(self) -> tuple[Any, ...]:
        # Clocks differ between machines, so what is left of the time is sent.
        left_s = self.deadline_s - time.monotonic()
        fields = (self.texts, self.prompt, self.use_cache, self.lane, left_s, self.keys)
        context = None if self.span is None else self.span.context
        return TextGroup._received, (context, *fields, self.task, self.is_resent)

    @classmethod
    def _received(cls, context: TraceContext | None, *fields: Any) -> Self:
        group = cls(*fields)
        group.deadline_s += time.monotonic()
        group.span = None if context is None else UnrecordedSpan(context)
        return group


class EncodedVectors(NamedTuple):
    """The output of a `TextGroup` as the cache stores it, in the order of its texts."""

    values: Sequence[bytes]  #: n values, see `cache.codec`
    tiers: bytes  #: the `Tier` of each text
    timings: Timings = NO_TIMINGS


class ReplicaCount(NamedTuple):
    """The replicas of a deployment that runs models."""

    running: int  #: those that take calls
    may_be_zero: bool = False  #: whether the deployment scales to zero
    failure: str | None = None  #: why no further replica starts

    @property
    def is_asleep(self) -> bool:
        """Whether the deployment has scaled to zero, or is just waking up."""
        return self.may_be_zero and not self.running and self.failure is None


class VectorRow(NamedTuple):
    """The vector of one text, with its metadata: a row of `Vectors`."""

    vector: Float32  #: shape (dim,)
    token_count: int
    truncated: bool
    tier: Tier


@dataclass(frozen=True, slots=True)
class Vectors:
    """The output of a `TextGroup`, in the order of its texts: one row of equal length for each.

    Vectors with all dimensions, or scores with all labels.
    """

    values: Float32  #: shape (n, dim)
    token_counts: Int32  #: shape (n,)
    truncated: Bool  #: shape (n,)
    tiers: UInt8  #: shape (n,); the `Tier` of each text
    timings: Timings = NO_TIMINGS

    @classmethod
    def from_rows(cls, rows: Sequence[VectorRow], timings: Timings) -> Self:
        """Stacks rows to arrays."""
        vectors, tokens, truncated, tiers = zip(*rows, strict=True)
        return cls(
            np.array(vectors),
            np.array(tokens, dtype=np.int32),
            np.array(truncated, dtype=np.bool_),
            np.frombuffer(bytes(tiers), dtype=np.uint8),
            timings,
        )

    def rows(self) -> list[VectorRow]:
        """Returns one row per text; the vectors are views of `values`."""
        tiers = map(Tier, self.tiers.tolist())
        return list(
            map(VectorRow, self.values, self.token_counts.tolist(), self.truncated.tolist(), tiers)
        )

    @property
    def computed_count(self) -> int:
        """Number of texts that the engine computed."""
        return count_computed(self.tiers)

    @property
    def computed_tokens(self) -> int:
        """Tokens of the texts that the engine computed."""
        return sum_computed(self.token_counts, self.tiers)


@dataclass(frozen=True, slots=True)
class RaggedVectors:
    """The output of a `TextGroup`, in the order of its texts, where lengths differ.

    Token vectors, or sparse vectors.
    """

    values: list[Row]  #: n arrays: of shape (tokens, width), or of `SPARSE_DTYPE`, shape (items,)
    token_counts: Int32  #: shape (n,)
    truncated: Bool  #: shape (n,)
    tiers: UInt8  #: shape (n,); the `Tier` of each text
    timings: Timings = NO_TIMINGS

    @property
    def computed_count(self) -> int:
        """Number of texts that the engine computed."""
        return count_computed(self.tiers)

    @property
    def computed_tokens(self) -> int:
        """Tokens of the texts that the engine computed."""
        return sum_computed(self.token_counts, self.tiers)


#: What a backend returns for a group; its task determines which.
Outputs = Vectors | RaggedVectors


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of one text, without truncation. Each list has one item per token."""

    ids: list[int]
    tokens: list[str]  #: strings of the vocabulary
    special_tokens_mask: list[bool]  #: True for tokens that the tokenizer added
    offsets: list[tuple[int, int]]  #: character range [start, end) in the text


class CacheState(NamedTuple):
    """The state of the L2 cache."""

    #: `degraded`: the server is configured, but doesn't respond or rejects writes; `off`: no
    #: server is configured; `unknown`: no replica responded.
    state: Literal["up", "degraded", "off", "unknown"]
    reason: str | None = None  #: why the state isn't `up`
    kind: str = "none"  #: `embedded`, `none`, or the scheme of the server's URL


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """What the vectors of a quantized model lose against those of the same model at float32.

    Measured with texts of other kinds than those of the calibration. Shares are from 0 to 1.
    """

    texts: int
    cosine_min: float  #: smallest cosine similarity of the two vectors of a text
    cosine_p1: float  #: that of which 1 % of the texts have a smaller one
    cosine_mean: float
    rank_correlation: float  #: Spearman's, of the similarities of pairs of texts
    kept: float  #: mean share of the ten nearest neighbours that are the same
    kept_first: float  #: share of the texts whose nearest neighbour is the same
    kept_mixed: float  #: as `kept`, where quantized vectors search among those at float32


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of an engine's outputs with those of sentence-transformers at float32.

    One of the measures is not None: that of the model's kind. It is NaN if an output wasn't finite.
    """

    precision: str
    texts: int
    cosine_min: float | None = None  #: smallest cosine similarity of two vectors
    score_error_max: float | None = None  #: largest error of a score, see `engines.parity`
    quantization_loss: QuantizationLoss | None = None  #: of int8 only

    @property
    def measure(self) -> str:
        """The measure of the model's kind, for people."""
        if self.score_error_max is not None:
            return f"error of scores <= {self.score_error_max:.7f}"
        if (loss := self.quantization_loss) is not None:
            return (
                f"cosine {loss.cosine_mean:.4f} on average, >= {loss.cosine_min:.4f}; "
                f"{loss.kept:.1%} of ten nearest neighbours kept"
            )
        return f"cosine >= {self.cosine_min:.7f}"

    def report(self) -> dict[str, Any]:
        """Returns the fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class CacheLoss:
    """What vectors lose in a cache that rounds them, measured with the texts of the parity gate."""

    dtype: CacheDtype
    texts: int
    cosine_min: float  #: smallest cosine similarity of a vector and what the cache returns for it
    cosine_mean: float
    neighbor_agreement: float  #: share of the five nearest texts of each that stay the nearest


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU of an engine."""

    name: str
    uuid: str  #: as `nvidia-smi -L` prints it
    memory_bytes: int
    memory_limit_bytes: int | None = None  #: the most that tensors may take; None: all that is free


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a process runs its models."""

    node: str  #: host name
    cpus: str  #: that the threads of models may use, such as `0-3,8`
    numa_node: int | None = None  #: of these CPUs; None: they are on several, or it is unknown


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The engine that runs the model in one replica."""

    engine: str
    device: str
    precision: str
    threads: int
    space_id: str
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Parity | None = None  #: None: the engine is the reference, or runs no model
    rejected: tuple[str, ...] = ()  #: preferred engines that failed, each with the reason
    cache_loss: CacheLoss | None = None  #: None: the cache doesn't round, or there are no vectors
    drift: float | None = None  #: of the model's canary; None: not measured
    failure: str | None = None  #: why a provider gets no calls at the moment; None: it does
    gpu: Gpu | None = None  #: None: it runs on no CUDA device
    placement: Placement | None = None  #: None: a provider runs the model
    startup: Mapping[str, float] = field(default_factory=dict)  #: seconds by step
