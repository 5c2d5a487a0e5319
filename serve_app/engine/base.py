"""What every engine offers to the scheduler."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serve_app.types import EngineInfo, Float32


class TokenIds(NamedTuple):
    """One text as the model reads it."""

    ids: list[int]  #: special tokens included, cut to the model's limit
    truncated: bool  #: whether something was cut


class Engine(Protocol):
    """Runs one model. Its two steps are called from two threads, never one step from two."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is and what it runs on."""
        ...

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as token ids, in order."""
        ...

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), in order, from one run of the model."""
        ...
