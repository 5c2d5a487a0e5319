"""Texts on their way through the queue of an engine, and their callers' hold on them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.engine.base import TokenIds
from serve_app.errors import DeadlineExceeded, EmbedServeError
from serve_app.types import Bool, Float32, Int32, TextGroup, Tier, Timings, Vectors


class Submission:
    """A group of texts that is answered together.

    `reply` is answered with the texts' `Vectors`, or with the error that stands for them:
    `Overloaded`, `DeadlineExceeded`, `EngineFailed`, `Unavailable`. Cancelling it takes what still
    waits out of the queue, at any time.
    """

    def __init__(self, group: TextGroup) -> None:
        self.group = group
        self.texts = list(map(str, group.prompted))
        self.reply: asyncio.Future[Vectors | EmbedServeError] = (
            asyncio.get_running_loop().create_future()
        )
        #: Tokens that wait for a batch: none before admission, none once the last text was taken.
        self.waiting_tokens = 0
        self.arrived_s = 0.0
        self._tokenize_s = self._infer_s = 0.0

    def tokenized(
        self, tokens: Sequence[TokenIds], dim: int, *, arrived_s: float, tokenize_s: float
    ) -> list["Waiting"]:
        """Takes its texts' tokens; returns the texts as they wait in the queue.

        Args:
            tokens: one for each text.
            dim: width of the vectors to come.
            arrived_s: when it came, by the scheduler's clock.
            tokenize_s: what tokenising took.
        """
        n = len(tokens)
        self._values: Float32 = np.empty((n, dim), dtype=np.float32)
        self._tokens: Int32 = np.array([len(t.ids) for t in tokens], dtype=np.int32)
        self._truncated: Bool = np.array([t.truncated for t in tokens], dtype=np.bool_)
        self._missing = n
        self._tokenize_s = tokenize_s
        self.waiting_tokens = int(self._tokens.sum())
        self.arrived_s = arrived_s
        return [Waiting(self, i, text) for i, text in enumerate(tokens)]

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

    def finish(self, index: int, vector: Float32, now_s: float) -> None:
        """Takes one text's vector; with the last one, the group is answered."""
        self._values[index] = vector
        self._missing -= 1
        if self._missing == 0 and not self.reply.done():
            waited_s = now_s - self.arrived_s - self._tokenize_s - self._infer_s
            timings = Timings(
                queue_s=max(waited_s, 0.0), tokenize_s=self._tokenize_s, infer_s=self._infer_s
            )
            tiers = np.full(len(self._tokens), Tier.COMPUTED, dtype=np.uint8)
            self.reply.set_result(
                Vectors(self._values, self._tokens, self._truncated, tiers, timings)
            )

    def ran(self, seconds: float) -> None:
        """A batch that held texts of it took so long."""
        self._infer_s += seconds

    def fail(self, error: EmbedServeError) -> None:
        """Answers the whole group with an error."""
        if not self.reply.done():
            self.reply.set_result(error)


@dataclass(slots=True, eq=False)
class Waiting:
    """One text in the queue."""

    submission: Submission
    index: int
    tokens: TokenIds

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens.ids)
