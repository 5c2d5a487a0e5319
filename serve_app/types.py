"""What travels between the rooms: jobs down, vectors up.

Everything here is small, frozen and picklable; it crosses Ray handles as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
UInt8 = NDArray[np.uint8]

#: What is embedded: a text, or token ids of the model's own, its special tokens included.
Input = str | tuple[int, ...]

#: Who goes first: somebody waits for `interactive` texts, nobody for each single `bulk` one.
Lane = Literal["interactive", "bulk"]


#: What becomes of a text that is longer than the model takes: its end or its start is left out, it
#: is an error, or its parts are embedded and their mean, weighted by length, stands for it.
Truncation = Literal["end", "start", "error", "chunk"]


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """What a client asks for, in no dialect's words."""

    texts: tuple[Input, ...]
    model: str | None = None  #: None: the served model
    input_type: str | None = None  #: name of one of the model's prompts; None: its default
    dimensions: int | None = None  #: None: all of the model's
    lane: Lane | None = None  #: None: by the number of texts
    use_cache: bool = True  #: False: computed anew, and not kept
    normalize: bool = False  #: True: at unit length, also where the model's pipeline doesn't do it
    truncation: Truncation = "end"
    max_tokens: int | None = None  #: longest text, special tokens included; None: the model's own


@dataclass(frozen=True, slots=True)
class TokenVectorsJob:
    """Asks for the vectors of each text's tokens, in place of one of the text."""

    job: EmbedJob


@dataclass(frozen=True, slots=True)
class TokenizeJob:
    """Asks how the tokenizer spells texts."""

    texts: tuple[str, ...]
    special: bool = True  #: with the special tokens around them
    model: str | None = None
    input_type: str | None = None  #: None: without any prompt, not even the model's default


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """Asks for the texts that token ids stand for."""

    rows: tuple[tuple[int, ...], ...]
    skip_special: bool = True
    model: str | None = None


@dataclass(frozen=True, slots=True)
class BatchJob:
    """Jobs that are answered together."""

    jobs: tuple[EmbedJob, ...]


Job = EmbedJob | TokenVectorsJob | TokenizeJob | DecodeJob | BatchJob


class Tier(IntEnum):
    """Where a vector came from."""

    COMPUTED = 0
    L1 = 1  #: memory of a process
    L2 = 2  #: Redis or Valkey


class Timings(NamedTuple):
    """Where the time of a group of texts went, in seconds."""

    cache_s: float = 0.0  #: looking up and writing back, all tiers together
    queue_s: float = 0.0  #: waiting for the engine
    tokenize_s: float = 0.0
    infer_s: float = 0.0  #: the model batches that held its texts


#: Of what took no time.
NO_TIMINGS = Timings()


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A finished job, in the order of its texts."""

    model: str
    vectors: Float32  #: shape (n, dimensions)
    tokens: Int32  #: shape (n,); the model's own count, special tokens included, after truncation
    truncated: Bool  #: shape (n,); True where the text was longer than the model takes
    tiers: UInt8  #: shape (n,); of each text its `Tier`
    timings: Timings = NO_TIMINGS
    raw: Float32 | None = None  #: shape (n, dim): as the model gave them; None: as `vectors`
    characters: int = 0  #: of all texts as they were given; token ids have none

    @property
    def total_tokens(self) -> int:
        """Of all texts."""
        return sum(self.tokens.tolist())

    @property
    def cached_tokens(self) -> int:
        """Of the texts that nothing was computed for."""
        pairs = zip(self.tokens.tolist(), self.tiers.tolist(), strict=True)
        return sum(tokens for tokens, tier in pairs if tier)


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Distinct texts of one job, on their way to the cache and to the engine."""

    texts: tuple[Input, ...]
    prompt: str = ""  #: put before each text, not before token ids; part of the cache key
    use_cache: bool = True
    lane: Lane = "interactive"
    timeout_s: float = 120.0  #: after which nobody waits for them any more

    @property
    def prompted_inputs(self) -> list[Input]:
        """What the model reads of each: texts with the prompt in front, token ids as they are."""
        return [self.prompt + text if isinstance(text, str) else text for text in self.texts]


class VectorRow(NamedTuple):
    """One text's vector, and what else a reply tells of the text."""

    vector: Float32  #: shape (dim,)
    tokens: int
    truncated: bool
    tier: Tier


@dataclass(frozen=True, slots=True)
class Vectors:
    """Full-size vectors of a group of texts, in the group's order."""

    values: Float32  #: shape (n, dim)
    tokens: Int32  #: shape (n,)
    truncated: Bool  #: shape (n,)
    tiers: UInt8  #: shape (n,); of each text its `Tier`
    timings: Timings = NO_TIMINGS

    @classmethod
    def from_rows(cls, rows: Sequence[VectorRow], timings: Timings) -> Self:
        """Rows, put together."""
        vectors, tokens, truncated, tiers = zip(*rows, strict=True)
        return cls(
            np.array(vectors),
            np.array(tokens, dtype=np.int32),
            np.array(truncated, dtype=np.bool_),
            np.frombuffer(bytes(tiers), dtype=np.uint8),
            timings,
        )

    def rows(self) -> list[VectorRow]:
        """Its rows; the vectors are views of `values`."""
        tiers = map(Tier, self.tiers.tolist())
        return list(
            map(VectorRow, self.values, self.tokens.tolist(), self.truncated.tolist(), tiers)
        )

    @property
    def computed_count(self) -> int:
        """How many of the texts the engine had to compute."""
        tiers: list[int] = self.tiers.tolist()
        return tiers.count(Tier.COMPUTED)


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text as the model's tokenizer spells it, not cut; one item for each token."""

    ids: list[int]
    pieces: list[str]  #: the vocabulary's own strings
    special: list[bool]  #: whether the tokenizer put it there, and not the text
    offsets: list[tuple[int, int]]  #: first character and the one behind the last


class TokenVectors(NamedTuple):
    """One text's vectors of tokens, as the model's transformer leaves them, before pooling."""

    values: Float32  #: shape (tokens, width), special tokens included
    truncated: bool


class CacheState(NamedTuple):
    """How the shared tier of the cache is."""

    #: `up`; `degraded`: it is configured, and doesn't answer or takes nothing; `off`: none is
    #: configured; `unknown`: nobody could be asked.
    state: Literal["up", "degraded", "off", "unknown"]
    reason: str | None = None  #: why it isn't up
    kind: str = "none"  #: `embedded`, `none`, or the scheme of the server's URL


class MemoryStats(NamedTuple):
    """Of one process' memory: counts since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int


class StoreStats(NamedTuple):
    """Of the shared server, as far as it tells: everything in it, not only one model's vectors."""

    entries: int
    bytes: int
    max_bytes: int  #: 0: no bound
    hits: int
    misses: int
    evictions: int


class CacheReport(NamedTuple):
    """What one process knows of its tiers."""

    memory: MemoryStats
    state: CacheState
    store: StoreStats | None  #: None: it doesn't ask the server itself, or got no answer


class WarmResult(NamedTuple):
    """What it took to make a list of texts known."""

    texts: int
    computed: int


@dataclass(frozen=True, slots=True)
class Parity:
    """How near an engine's vectors came to those of sentence-transformers at float32."""

    precision: str
    texts: int
    cosine_min: float  #: NaN where a vector wasn't finite


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What runs the model in one replica."""

    engine: str
    device: str
    precision: str
    threads: int
    space_id: str
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Parity | None = None  #: None: nothing to compare, it is the reference or no model
    refused: tuple[str, ...] = ()  #: better engines that were not taken, and why
