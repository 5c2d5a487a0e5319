"""The data types that packages exchange: jobs flow down to the engine, vectors flow up.

All of them are small and picklable, and cross Ray handles unchanged.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]

T = TypeVar("T")

#: An input to embed: a text, or token ids of the model's vocabulary, special tokens included.
Input = str | tuple[int, ...]

#: The priority class of a job: `interactive` texts are computed before `bulk` ones.
Lane = Literal["interactive", "bulk"]

#: The treatment of a text over the token limit: drop tokens at its `end` or its `start`, raise an
#: `error`, or embed each `chunk` and return the mean of the chunks, weighted by their tokens.
Truncation = Literal["end", "start", "error", "chunk"]


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """A request for one vector per text, independent of the dialect it arrived in."""

    texts: tuple[Input, ...]
    model: str | None = None  #: None: the served model
    input_type: str | None = None  #: name of a prompt of the model; None: the default prompt
    dimensions: int | None = None  #: None: all dimensions of the model
    lane: Lane | None = None  #: None: chosen by the number of texts
    use_cache: bool = True  #: False: neither read from the cache nor written to it
    normalize: bool = False  #: True: unit length, even if the model's pipeline doesn't normalize
    truncation: Truncation = "end"
    max_tokens: int | None = None  #: token limit, special tokens included; None: the model's

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that count toward a token quota."""
        return self.texts

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job with these options; None keeps the job's value."""
        return replace(
            self,
            lane=self.lane if lane is None else lane,
            use_cache=self.use_cache if use_cache is None else use_cache,
        )


@dataclass(frozen=True, slots=True)
class TokenVectorsJob:
    """A request for one vector per token of each text, instead of one per text."""

    job: EmbedJob

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that count toward a token quota."""
        return self.job.texts

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job with these options; None keeps the job's value."""
        return replace(self, job=self.job.with_options(lane=lane, use_cache=use_cache))


class _TokenizerJob:
    """A job that only the tokenizer runs, without lanes or a cache."""

    __slots__ = ()

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the job itself: it has no such options."""
        return self


@dataclass(frozen=True, slots=True)
class TokenizeJob(_TokenizerJob):
    """A request for the tokens of each text, without truncation."""

    texts: tuple[str, ...]
    add_special_tokens: bool = True
    model: str | None = None
    input_type: str | None = None  #: None: no prompt, not even the model's default

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that count toward a token quota."""
        return self.texts


@dataclass(frozen=True, slots=True)
class DecodeJob(_TokenizerJob):
    """A request to decode token ids to texts."""

    token_ids: tuple[tuple[int, ...], ...]
    skip_special_tokens: bool = True
    model: str | None = None

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Empty: decoding counts toward no token quota."""
        return ()


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Several jobs in one request; if one of them fails, all do."""

    jobs: tuple[EmbedJob, ...]

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that count toward a token quota."""
        return tuple(text for job in self.jobs for text in job.texts)

    def with_options(self, *, lane: Lane | None = None, use_cache: bool | None = None) -> Self:
        """Returns the batch with these options in each job; None keeps the job's value."""
        jobs = tuple(job.with_options(lane=lane, use_cache=use_cache) for job in self.jobs)
        return replace(self, jobs=jobs)


Job = EmbedJob | TokenVectorsJob | TokenizeJob | DecodeJob | BatchJob


class Tier(IntEnum):
    """The source of a vector."""

    COMPUTED = 0  #: the engine
    L1 = 1  #: the in-memory cache of a process
    L2 = 2  #: the shared Redis or Valkey server


class Timings(NamedTuple):
    """The time that a group of texts spent in each stage, in seconds."""

    cache_s: float = 0.0  #: reads and writes of all tiers
    queue_s: float = 0.0  #: waiting for the engine
    tokenize_s: float = 0.0
    infer_s: float = 0.0  #: the model batches that contained its texts


#: Timings of skipped work.
NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The result of an `EmbedJob`, in the order of its texts."""

    model: str
    vectors: Float32  #: shape (n, dimensions)
    token_counts: Int32  #: shape (n,); after truncation, special tokens included
    truncated: Bool  #: shape (n,); True where the text was over the token limit
    tiers: UInt8  #: shape (n,); the `Tier` of each text
    timings: Timings = NO_TIMINGS
    raw: Float32 | None = None  #: shape (n, dim); the model's unmodified vectors; None: `vectors`
    characters: int = 0  #: total length of the texts; token ids count as zero
    json_rows: Sequence[Any] | None = None  #: the vectors as JSON, serialized ahead; None: not yet

    @property
    def total_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.token_counts.tolist())

    @property
    def billed_tokens(self) -> int:
        """Tokens that the client pays for: all of them, cached ones included."""
        return self.total_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the texts whose vectors came from the cache."""
        pairs = zip(self.token_counts.tolist(), self.tiers.tolist(), strict=True)
        return sum(tokens for tokens, tier in pairs if tier)


@dataclass(slots=True)
class TextGroup:
    """The distinct texts of one job: the unit that the cache and the scheduler work on."""

    texts: tuple[Input, ...]
    prompt: str = ""  #: prefix of each text, but not of token ids; part of the cache key
    use_cache: bool = True
    lane: Lane = "interactive"
    #: When the caller gives up, by `time.monotonic`. Texts that are still queued then are dropped.
    deadline_s: float = math.inf
    #: The cache key of each text; empty until the first cache has computed them.
    keys: tuple[bytes, ...] = ()

    @property
    def prompted_inputs(self) -> list[Input]:
        """The model's inputs: texts with the prompt prepended, token ids unchanged."""
        return [self.prompt + text if isinstance(text, str) else text for text in self.texts]

    def subset(self, indices: Sequence[int]) -> "TextGroup":
        """Returns a group of some of the texts, with their keys."""
        if len(indices) == len(self.texts):
            return self
        texts = tuple(self.texts[i] for i in indices)
        keys = tuple(self.keys[i] for i in indices) if self.keys else ()
        return TextGroup(texts, self.prompt, self.use_cache, self.lane, self.deadline_s, keys)

    def __reduce__(self) -> tuple[Any, ...]:
        # Clocks differ between machines, so what is left of the time is sent.
        left_s = self.deadline_s - time.monotonic()
        fields = (self.texts, self.prompt, self.use_cache, self.lane, left_s, self.keys)
        return TextGroup._received, fields

    @classmethod
    def _received(cls, *fields: Any) -> Self:
        group = cls(*fields)
        group.deadline_s += time.monotonic()
        return group


class EncodedVectors(NamedTuple):
    """Vectors of a `TextGroup` as the cache stores them, in the order of its texts."""

    values: Sequence[bytes]  #: n values, see `cache.codec`
    tiers: bytes  #: the `Tier` of each text
    timings: Timings = NO_TIMINGS


class VectorRow(NamedTuple):
    """The vector of one text, with its metadata: a row of `Vectors`."""

    vector: Float32  #: shape (dim,)
    token_count: int
    truncated: bool
    tier: Tier


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of a `TextGroup`, in the order of its texts and with all dimensions."""

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
        tiers: list[int] = self.tiers.tolist()
        return tiers.count(Tier.COMPUTED)


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of one text, without truncation. Each list has one item per token."""

    ids: list[int]
    tokens: list[str]  #: strings of the vocabulary
    special_tokens_mask: list[bool]  #: True for tokens that the tokenizer added
    offsets: list[tuple[int, int]]  #: character range [start, end) in the text


class TokenVectors(NamedTuple):
    """The output of the model's last hidden layer for one text, before pooling."""

    values: Float32  #: shape (tokens, hidden size), special tokens included
    truncated: bool


class BatchResult(list[EmbedResult]):
    """The results of a `BatchJob`, in the order of its jobs."""

    @property
    def billed_tokens(self) -> int:
        """Tokens that the client pays for, summed over the jobs."""
        return sum(result.billed_tokens for result in self)

    @property
    def truncated(self) -> Bool:
        """Shape (texts of all jobs,); True where the text was over the token limit."""
        return np.concatenate([result.truncated for result in self])


class TokenVectorsResult(list[TokenVectors]):
    """The result of a `TokenVectorsJob`, in the order of its texts."""

    @property
    def billed_tokens(self) -> int:
        """Tokens that the client pays for: one for each vector."""
        return sum(len(text.values) for text in self)

    @property
    def truncated(self) -> Bool:
        """Shape (n,); True where the text was over the token limit."""
        return np.array([text.truncated for text in self], dtype=np.bool_)


class TokenizerResult(list[T]):
    """The result of a `TokenizeJob` or a `DecodeJob`, in the order of its rows."""

    billed_tokens = 0

    @property
    def truncated(self) -> Bool:
        """Shape (0,): these jobs never truncate."""
        return np.zeros(0, dtype=np.bool_)


Result = EmbedResult | BatchResult | TokenVectorsResult | TokenizerResult[Any]


class CacheState(NamedTuple):
    """The state of the L2 cache."""

    #: `degraded`: the server is configured, but doesn't respond or rejects writes; `off`: no
    #: server is configured; `unknown`: no replica responded.
    state: Literal["up", "degraded", "off", "unknown"]
    reason: str | None = None  #: why the state isn't `up`
    kind: str = "none"  #: `embedded`, `none`, or the scheme of the server's URL


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of an engine's vectors with those of sentence-transformers at float32."""

    precision: str
    texts: int
    cosine_min: float  #: smallest cosine similarity over the texts; NaN if a vector wasn't finite


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
