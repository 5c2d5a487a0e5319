"""Pending groups of texts and the futures that their callers await.

What flows: `TextGroup` → `PendingGroup` → one `QueuedText` per text → batches → one result per
text → the group's future.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from serve_app.engines.base import Engine, TokenIds
from serve_app.errors import DeadlineExceeded, EmbedServeError, InvalidRequest
from serve_app.types import (
    Bool,
    Float32,
    Int32,
    Lane,
    TextGroup,
    Tier,
    Timings,
    TokenVectors,
    Vectors,
)

ResultT = TypeVar("ResultT")
#: Text vectors are queued by lane. Token vectors have a queue of their own, since an engine can't
#: compute both kinds in one batch.
Queue = Lane | Literal["tokens"]
#: The output of one engine run: for each text a vector, or an array of token vectors.
BatchOutput = Float32 | Sequence[Float32]
#: Limit of token vectors per group: 48 MiB at 384 dimensions, and ten times that as JSON.
_MAX_TOKEN_VECTORS = 32768


class PendingGroup(Generic[ResultT]):
    """A group of texts that succeeds or fails as a whole.

    `future` resolves to the result, or to an error as a value: `InvalidRequest`, `Overloaded`,
    `DeadlineExceeded`, `InferenceError` or `Unavailable`. Cancelling it removes the group's texts
    from the queue.
    """

    def __init__(self, group: TextGroup) -> None:
        self.text_group = group
        self.inputs = group.prompted_inputs
        self.queue: Queue = group.lane
        self.future: asyncio.Future[ResultT | EmbedServeError] = (
            asyncio.get_running_loop().create_future()
        )
        #: Tokens of the texts that wait for a batch; 0 before admission.
        self.tokens_in_queue = 0
        self.arrival_s = 0.0
        self._tokenize_s = self._infer_s = 0.0

    def split(
        self, token_ids: Sequence[TokenIds], *, arrival_s: float, tokenize_s: float
    ) -> list["QueuedText"]:
        """Returns one `QueuedText` for each text.

        Args:
            token_ids: one item for each text.
            arrival_s: time of arrival by the scheduler's clock.
            tokenize_s: duration of tokenization.
        """
        n = len(token_ids)
        self._results: list[Any] = [None] * n
        self._tokens: Int32 = np.array([len(row.ids) for row in token_ids], dtype=np.int32)
        self._truncated: Bool = np.array([row.truncated for row in token_ids], dtype=np.bool_)
        self._remaining = n
        self._tokenize_s = tokenize_s
        self.tokens_in_queue = int(self._tokens.sum())
        self.arrival_s = arrival_s
        return [QueuedText(self, i, row) for i, row in enumerate(token_ids)]

    def enforce_deadline(self, now_s: float) -> None:
        """Fails the group with `DeadlineExceeded` if its deadline has passed."""
        if now_s > self.text_group.deadline_s:
            self.fail(
                DeadlineExceeded(
                    f"The texts waited for the model for {now_s - self.arrival_s:.1f} s, until the "
                    "request's time was up. Send fewer texts in one request, or try again when "
                    "there is less load."
                )
            )

    def set_result(self, index: int, result: Float32, now_s: float) -> None:
        """Stores the result of one text; the last one resolves the group's future."""
        self._results[index] = result
        self._remaining -= 1
        if self._remaining == 0 and not self.future.done():
            queue_s = now_s - self.arrival_s - self._tokenize_s - self._infer_s
            timings = Timings(
                queue_s=max(queue_s, 0.0), tokenize_s=self._tokenize_s, infer_s=self._infer_s
            )
            self.future.set_result(self._build_result(timings))

    def add_inference_time(self, seconds: float) -> None:
        """Adds the duration of a batch that held texts of the group."""
        self._infer_s += seconds

    def fail(self, error: EmbedServeError) -> None:
        """Resolves the group's future to an error, unless it is done."""
        if not self.future.done():
            self.future.set_result(error)

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> BatchOutput:
        """Runs the engine on a batch and returns one result for each text."""
        raise NotImplementedError

    def finite_mask(self, output: BatchOutput) -> Sequence[bool]:
        """Returns for each text whether its result holds neither NaN nor infinity."""
        raise NotImplementedError

    def _build_result(self, timings: Timings) -> ResultT:
        raise NotImplementedError


class PendingVectors(PendingGroup[Vectors]):
    """A group whose result is one vector for each text."""

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> Float32:
        """Returns vectors of shape (len(batch), dim)."""
        return engine.embed(batch)

    def finite_mask(self, output: BatchOutput) -> Sequence[bool]:
        """Returns for each text whether its vector is finite."""
        finite: list[bool] = np.isfinite(np.sum(output, axis=1)).tolist()
        return finite

    def _build_result(self, timings: Timings) -> Vectors:
        tiers = np.full(len(self._tokens), Tier.COMPUTED, dtype=np.uint8)
        return Vectors(np.array(self._results), self._tokens, self._truncated, tiers, timings)


class PendingTokenVectors(PendingGroup[list[TokenVectors]]):
    """A group whose result is one vector for each token of each text."""

    def __init__(self, group: TextGroup) -> None:
        super().__init__(group)
        self.queue = "tokens"

    def split(
        self, token_ids: Sequence[TokenIds], *, arrival_s: float, tokenize_s: float
    ) -> list["QueuedText"]:
        """Returns one `QueuedText` for each text; fails the group if its result is too large."""
        count = sum(len(row.ids) for row in token_ids)
        if count > _MAX_TOKEN_VECTORS:
            self.fail(
                InvalidRequest(
                    f"The texts have {count} tokens; one request returns the vectors of at most "
                    f"{_MAX_TOKEN_VECTORS} tokens. Send fewer texts in one request.",
                    "texts",
                )
            )
            return []
        return super().split(token_ids, arrival_s=arrival_s, tokenize_s=tokenize_s)

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> Sequence[Float32]:
        """Returns for each text an array of shape (tokens, width)."""
        return engine.embed_tokens(batch)

    def finite_mask(self, output: BatchOutput) -> Sequence[bool]:
        """Returns for each text whether all its token vectors are finite."""
        return [bool(np.isfinite(array.sum())) for array in output]

    def _build_result(self, timings: Timings) -> list[TokenVectors]:
        return list(map(TokenVectors, self._results, self._truncated.tolist()))


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text in the queue."""

    group: PendingGroup[Any]
    index: int  #: its position in the group
    token_ids: TokenIds

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.token_ids.ids)
