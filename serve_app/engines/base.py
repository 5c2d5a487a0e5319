"""The interface between the scheduler and an engine: inputs -> model inputs -> output rows."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from serve_app.errors import UnsupportedOperation
from serve_app.inputs import Input
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import EngineInfo, Float32, Row, Tokenization

#: Limit of what a sparse model computes at once for a text's tokens: a value for each token of the
#: vocabulary, of which the pooling keeps the largest.
_MAX_LOGITS_BYTES = 256 << 20


class TokenIds(NamedTuple):
    """One text, or one pair of texts, as input of the model."""

    ids: list[int]  #: special tokens included, truncated to the model's limit
    truncated: bool  #: whether tokens were cut off
    #: Segment of each token, 0 or 1; None: all are 0. Only pairs have two segments.
    type_ids: list[int] | None = None
    #: For each token, whether the other tokens attend to it, 1 or 0; None: to all.
    attended: list[int] | None = None
    #: Positions of the tokens whose vectors `embed_tokens` returns; None: of all.
    kept: list[int] | None = None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)


class Pixels(NamedTuple):
    """One image as input of the model."""

    values: Float32  #: shape (channels, height, width)
    length: int  #: number of tokens that the image costs: its patches
    truncated: bool = False


ModelInput = TokenIds | Pixels
#: The outputs of a batch, one row for each input: an array if all rows have one length.
Rows = Float32 | list[Row]


def finite_mask(rows: Rows) -> list[bool]:
    """Returns for each row whether it holds neither NaN nor infinity."""
    if isinstance(rows, np.ndarray):
        finite: list[bool] = np.isfinite(np.sum(rows, axis=1)).tolist()
        return finite
    return [bool(np.isfinite((row["weight"] if row.dtype.names else row).sum())) for row in rows]


class Tokenizer(Protocol):
    """The tokenizer of a model. Any number of threads may use it at a time."""

    def encode(self, inputs: Sequence[Input]) -> Sequence[ModelInput]:
        """Returns each input as the model takes it: texts as token ids, truncated to its limit.

        Inputs that are token ids already are checked and truncated.

        Raises:
            InvalidRequest: token ids are not the model's own, an image can't be decoded, or the
                model doesn't take inputs of this type. No input was encoded.
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
    """Runs one model. Up to `streams` threads call `run` at a time."""

    @property
    def info(self) -> EngineInfo:
        """The engine, its device, precision and versions."""
        ...

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that `run` computes."""
        ...

    @property
    def streams(self) -> int:
        """How many batches run in parallel; more concurrent calls gain nothing."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        """Returns the output of each input, from one run of the model.

        An output may differ with the other inputs of its batch: by up to 1e-5 at fp32, and by up to
        2e-3 at bf16 and int8. The outputs of one text are equal bit for bit only while they are
        cached.

        Args:
            task: one of `tasks`.
            batch: inputs of one type, from `tokenizer.encode`.

        Returns:
            In the order of the batch, independent of memory that the next run overwrites:
            `embed`, `embed_images`: an array of shape (len(batch), dim), float32.
            `embed_tokens`: arrays of shape (tokens, width), float32, without padding.
            `embed_sparse`: arrays of `SPARSE_DTYPE`, by ascending index, without zeros.
            `rerank`, `classify`: the logits, an array of shape (len(batch), labels), float32.

        Raises:
            UnsupportedOperation: the engine doesn't support the task.
            MemoryError: the batch doesn't fit into memory. The engine remains usable; a smaller
                batch may fit.
        """
        ...


def engine_tasks(spec: ModelSpec) -> frozenset[Task]:
    """Returns the tasks that the engine of a model computes.

    The service computes MaxSim, by which it reranks with a multi-vector model.
    """
    return frozenset(spec.tasks) - ({"rerank"} if spec.kind == "multi-vector" else set())


def sub_batches(batch: Sequence[TokenIds], vocab_size: int) -> Iterator[Sequence[TokenIds]]:
    """Splits a batch of a sparse model, in order, so that each part's logits fit into memory."""
    max_padded_tokens = _MAX_LOGITS_BYTES // (4 * vocab_size)
    start = longest = 0
    for end, tokens in enumerate(batch):
        longest = max(longest, tokens.length)
        if end > start and longest * (end + 1 - start) > max_padded_tokens:
            yield batch[start:end]
            start, longest = end, tokens.length
    yield batch[start:]


def unsupported_task(task: Task, tasks: Collection[Task]) -> UnsupportedOperation:
    """Returns the error for a task that an engine's model doesn't support."""
    supported = ", ".join(sorted(tasks))
    return UnsupportedOperation(f"The model doesn't support `{task}`. It supports: {supported}.")
