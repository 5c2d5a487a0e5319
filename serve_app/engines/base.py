"""What every engine offers to the scheduler."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serve_app.types import EngineInfo, Float32, Input, Tokenization


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

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        """The texts as token ids, in order; what is given as token ids stays as it is, but cut.

        Raises:
            InvalidRequest: token ids are not the model's own. None of the texts was tokenized.
        """
        ...

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Tokenization]:
        """How the tokenizer spells texts, not cut; `special`: with its special tokens around them.

        Raises:
            InvalidRequest: the engine has no vocabulary.
        """
        ...

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """The texts that token ids stand for.

        Raises:
            InvalidRequest: an id is not in the vocabulary, or the engine has none.
        """
        ...

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, in order, from one run of the model.

        Raises:
            MemoryError: the batch doesn't fit; a smaller one may. The engine remains usable.
        """
        ...

    def embed_tokens(self, batch: Sequence[TokenIds]) -> list[Float32]:
        """Of each text the vectors of its tokens, as the transformer leaves them before pooling.

        Returns:
            Arrays of shape (tokens, width), float32, special tokens included, padding left out.

        Raises:
            InvalidRequest: the engine has none.
            MemoryError: as `embed`.
        """
        ...
