"""What travels between the rooms: jobs down, vectors up.

Everything here is small, frozen and picklable; it crosses Ray handles as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]

#: Who goes first: somebody waits for `interactive` texts, nobody for each single `bulk` one.
Lane = Literal["interactive", "bulk"]


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """What a client asks for, in no dialect's words."""

    texts: tuple[str, ...]
    model: str | None = None  #: None: the served model
    input_type: str | None = None  #: name of one of the model's prompts; None: its default
    dimensions: int | None = None  #: None: all of the model's
    lane: Lane | None = None  #: None: by the number of texts


class Timings(NamedTuple):
    """Where the time of a group of texts went, in seconds."""

    cache_s: float = 0.0  #: looking up and writing back, all tiers together
    queue_s: float = 0.0  #: waiting for the engine
    tokenize_s: float = 0.0
    infer_s: float = 0.0  #: the model batches that held its texts


#: Of what took no time.
NO_TIME = Timings()


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """A finished job, in the order of its texts."""

    model: str
    vectors: Float32  #: shape (n, dimensions)
    tokens: Int32  #: shape (n,); the model's own count, special tokens included, after truncation
    truncated: Bool  #: shape (n,); True where the text was longer than the model takes
    timings: Timings = NO_TIME

    @property
    def total_tokens(self) -> int:
        """Of all texts."""
        return sum(self.tokens.tolist())


@dataclass(frozen=True, slots=True)
class TextGroup:
    """Distinct texts of one job, on their way to the cache and to the engine."""

    texts: tuple[str, ...]
    prompt: str = ""  #: put before each text; part of the cache key
    use_cache: bool = True
    lane: Lane = "interactive"
    timeout_s: float = 120.0  #: after which nobody waits for them any more


@dataclass(frozen=True, slots=True)
class Vectors:
    """Full-size vectors of a group of texts, in the group's order."""

    values: Float32  #: shape (n, dim)
    tokens: Int32  #: shape (n,)
    truncated: Bool  #: shape (n,)
    computed: int  #: how many of the n came from the engine rather than from a cache
    timings: Timings = NO_TIME


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
