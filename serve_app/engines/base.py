"""The interface between the scheduler and an engine: texts -> token ids -> vectors."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serve_app.types import EngineInfo, Float32, Input, Tokenization


class TokenIds(NamedTuple):
    """One text as input of the model."""

    ids: list[int]  #: special tokens included, truncated to the model's limit
    truncated: bool  #: whether tokens were cut off


class Tokenizer(Protocol):
    """The tokenizer of a model. Any number of threads may use it at a time."""

    def encode(self, texts: Sequence[Input]) -> list[TokenIds]:
        """Returns each text as token ids, truncated to the model's limit.

        Inputs that are token ids already are checked and truncated.

        Raises:
            InvalidRequest: token ids are not the model's own. No text was encoded.
        """
        ...

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Tokenization]:
        """Returns the tokens of each text, not truncated.

        Raises:
            InvalidRequest: the engine has no vocabulary.
        """
        ...

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Returns the text of each row of token ids.

        Raises:
            InvalidRequest: an id is not in the vocabulary, or the engine has none.
        """
        ...


class Engine(Protocol):
    """Runs one model. Up to `streams` threads call `embed` at a time."""

    @property
    def info(self) -> EngineInfo:
        """The engine, its device, precision and versions."""
        ...

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        ...

    @property
    def streams(self) -> int:
        """How many batches run in parallel; more concurrent calls gain nothing."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Returns one vector for each text, from one run of the model.

        A vector may differ with the other texts in its batch: by up to 1e-5 at fp32, and by up to
        2e-3 at bf16. The vectors of one text are equal bit for bit only while they are cached.

        Returns:
            Shape (len(batch), dim), float32, in the order of the batch.

        Raises:
            MemoryError: the batch doesn't fit into memory. The engine remains usable; a smaller
                batch may fit.
        """
        ...

    def embed_tokens(self, batch: Sequence[TokenIds]) -> list[Float32]:
        """Returns one vector for each token, the transformer's output before pooling.

        Returns:
            For each text an array of shape (tokens, width), float32, special tokens included,
            padding removed.

        Raises:
            InvalidRequest: the engine has no token vectors.
            MemoryError: see `embed`.
        """
        ...
