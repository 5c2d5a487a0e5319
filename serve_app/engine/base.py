"""What every engine offers to the scheduler."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serve_app.types import EngineInfo, Float32


class TokenIds(NamedTuple):
    """One text as the model reads it."""

    ids: list[int]  #: special tokens included, cut to the model's limit
    truncated: bool  #: whether something was cut


class Engine(Protocol):
    """Runs one model. Up to `streams` threads call `embed` at a time, others `tokenize`."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is and what it runs on."""
        ...

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        ...

    @property
    def streams(self) -> int:
        """How many threads may be inside `embed` at the same time; more gain nothing."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as token ids, in order."""
        ...

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, in order, from one run of the model.

        Raises:
            MemoryError: the batch doesn't fit; a smaller one may. The engine remains usable.
        """
        ...
