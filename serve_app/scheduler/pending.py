"""Texts on their way through the queue of an engine, and their callers' hold on them."""

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

_Reply = TypeVar("_Reply")
#: Where texts wait: vectors of texts by their lane, those of tokens apart, since the engine can't
#: compute both in one batch.
Queue = Lane | Literal["tokens"]
#: What one run of the engine gives: of each text in the batch a vector, or an array of them.
Values = Float32 | Sequence[Float32]
#: Most tokens that one group gets vectors of: 48 MiB at 384 dimensions, and JSON is ten times that.
_MOST_TOKENS = 32768


class PendingGroup(Generic[_Reply]):
    """A group of texts that is answered together.

    `reply` is answered with what is asked for, or with the error that stands for it:
    `InvalidRequest`, `Overloaded`, `DeadlineExceeded`, `InferenceError`, `Unavailable`. Cancelling
    it takes what still waits out of the queue, at any time.
    """

    def __init__(self, group: TextGroup) -> None:
        self.group = group
        self.texts = group.prompted_inputs
        self.queue: Queue = group.lane
        self.reply: asyncio.Future[_Reply | EmbedServeError] = (
            asyncio.get_running_loop().create_future()
        )
        #: Tokens that wait for a batch: none before admission, none once the last text was taken.
        self.waiting_tokens = 0
        self.arrived_s = 0.0
        self._tokenize_s = self._infer_s = 0.0

    def tokenized(
        self, tokens: Sequence[TokenIds], *, arrived_s: float, tokenize_s: float
    ) -> list["QueuedText"]:
        """Takes its texts' tokens; returns the texts as they wait in the queue.

        Args:
            tokens: one for each text.
            arrived_s: when it came, by the scheduler's clock.
            tokenize_s: what tokenising took.
        """
        n = len(tokens)
        self._values: list[Any] = [None] * n
        self._tokens: Int32 = np.array([len(t.ids) for t in tokens], dtype=np.int32)
        self._truncated: Bool = np.array([t.truncated for t in tokens], dtype=np.bool_)
        self._missing = n
        self._tokenize_s = tokenize_s
        self.waiting_tokens = int(self._tokens.sum())
        self.arrived_s = arrived_s
        return [QueuedText(self, i, text) for i, text in enumerate(tokens)]

    def wanted(self, now_s: float) -> bool:
        """Whether somebody still waits; past its deadline it is answered so."""
        if self.reply.done():
            return False
        if now_s - self.arrived_s > self.group.timeout_s:
            self.fail(
                DeadlineExceeded(
                    f"The texts waited for the model for {self.group.timeout_s:g} s. Send fewer in "
                    "one request, or try again when there is less load."
                )
            )
            return False
        return True

    def finish(self, index: int, value: Float32, now_s: float) -> None:
        """Takes what was computed of one text; with the last one, the group is answered."""
        self._values[index] = value
        self._missing -= 1
        if self._missing == 0 and not self.reply.done():
            waited_s = now_s - self.arrived_s - self._tokenize_s - self._infer_s
            timings = Timings(
                queue_s=max(waited_s, 0.0), tokenize_s=self._tokenize_s, infer_s=self._infer_s
            )
            self.reply.set_result(self._answer(timings))

    def ran(self, seconds: float) -> None:
        """A batch that held texts of it took so long."""
        self._infer_s += seconds

    def fail(self, error: EmbedServeError) -> None:
        """Answers the whole group with an error."""
        if not self.reply.done():
            self.reply.set_result(error)

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> Values:
        """One run of the engine for a batch of such texts: of each, what `finish` takes."""
        raise NotImplementedError

    def usable(self, values: Values) -> Sequence[bool]:
        """Which of them hold nothing but numbers."""
        raise NotImplementedError

    def _answer(self, timings: Timings) -> _Reply:
        raise NotImplementedError


class PendingVectors(PendingGroup[Vectors]):
    """Asks for the vectors of texts."""

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> Float32:
        """Vectors, the rows of one array."""
        return engine.embed(batch)

    def usable(self, values: Values) -> Sequence[bool]:
        """Which of them are finite."""
        finite: list[bool] = np.isfinite(np.sum(values, axis=1)).tolist()
        return finite

    def _answer(self, timings: Timings) -> Vectors:
        tiers = np.full(len(self._tokens), Tier.COMPUTED, dtype=np.uint8)
        return Vectors(np.array(self._values), self._tokens, self._truncated, tiers, timings)


class PendingTokenVectors(PendingGroup[list[TokenVectors]]):
    """Asks for the vectors of texts' tokens."""

    def __init__(self, group: TextGroup) -> None:
        super().__init__(group)
        self.queue = "tokens"

    def tokenized(
        self, tokens: Sequence[TokenIds], *, arrived_s: float, tokenize_s: float
    ) -> list["QueuedText"]:
        """As of any; refused, with nothing to wait, where the reply would be too large."""
        count = sum(len(t.ids) for t in tokens)
        if count > _MOST_TOKENS:
            self.fail(
                InvalidRequest(
                    f"The texts have {count} tokens; vectors of at most {_MOST_TOKENS} are given "
                    "at a time. Send fewer texts in one request.",
                    "texts",
                )
            )
            return []
        return super().tokenized(tokens, arrived_s=arrived_s, tokenize_s=tokenize_s)

    def compute(self, engine: Engine, batch: Sequence[TokenIds]) -> Sequence[Float32]:
        """Of each text an array with a row for each token."""
        return engine.embed_tokens(batch)

    def usable(self, values: Values) -> Sequence[bool]:
        """Which of them are finite."""
        return [bool(np.isfinite(value.sum())) for value in values]

    def _answer(self, timings: Timings) -> list[TokenVectors]:
        return list(map(TokenVectors, self._values, self._truncated.tolist()))


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text in the queue."""

    submission: PendingGroup[Any]
    index: int
    tokens: TokenIds

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens.ids)
