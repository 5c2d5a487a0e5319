"""Pending groups of texts and the futures that their callers await.

What flows: `TextGroup` → `PendingGroup` → one `QueuedText` per text → batches → one row per text →
the group's future.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from serve_app.engines.base import Engine, ModelInput, Rows, finite_mask
from serve_app.errors import DeadlineExceeded, EmbedServeError, InferenceError, InvalidRequest
from serve_app.tasks import RAGGED_TASKS, Task
from serve_app.types import (
    Bool,
    Int32,
    Lane,
    Outputs,
    RaggedVectors,
    Row,
    TextGroup,
    Tier,
    Timings,
    Vectors,
)

logger = logging.getLogger(__name__)

#: Limit of token vectors per group: 48 MiB at 384 dimensions, and ten times that as JSON.
_MAX_TOKEN_VECTORS = 32768
_MAX_QUOTED_CHARS = 60
_NO_ROW = np.empty(0)


class QueueKey(NamedTuple):
    """A queue. A batch holds texts of one queue, since an engine runs one task of one model."""

    model: str
    task: Task
    lane: Lane


class QueuedGroup:
    """A group of texts that waits in a queue, and succeeds or fails as a whole.

    `future` resolves to the outputs, or to an error as a value. Cancelling it removes the group's
    texts from the queue.
    """

    def __init__(self, group: TextGroup) -> None:
        self.text_group = group
        self.future: asyncio.Future[Outputs | EmbedServeError] = (
            asyncio.get_running_loop().create_future()
        )
        #: Tokens of the texts that wait for a batch; 0 before admission.
        self.tokens_in_queue = 0
        self.arrival_s = 0.0
        self.has_started = False  #: whether the wait for its first batch or call is over
        self._tokenize_s = self._infer_s = 0.0
        #: Of the time until the first batch, which may never start; None: not traced.
        self.queue_span = None if group.span is None else group.span.child("queue")
        if self.queue_span is not None:
            self.future.add_done_callback(self._end_queue_span)

    def _expect(
        self, tokens: Sequence[int], truncated: Sequence[bool], arrival_s: float, tokenize_s: float
    ) -> None:
        """Sets what is known of the texts before they have results."""
        self._results: list[Row] = [_NO_ROW] * len(tokens)
        self._tokens: Int32 = np.array(tokens, dtype=np.int32)
        self._truncated: Bool = np.array(truncated, dtype=np.bool_)
        self._remaining = len(tokens)
        self._tokenize_s = tokenize_s
        self.tokens_in_queue = int(self._tokens.sum())
        self.arrival_s = arrival_s
        if self.queue_span is not None and tokenize_s:
            span = self.queue_span.child("tokenize", start_s=arrival_s)
            span.end(end_s=arrival_s + tokenize_s)

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

    def set_result(self, index: int, result: Row, now_s: float) -> None:
        """Stores the result of one text; the last one resolves the group's future."""
        self._results[index] = result
        self._remaining -= 1
        if self._remaining == 0 and not self.future.done():
            queue_s = now_s - self.arrival_s - self._tokenize_s - self._infer_s
            timings = Timings(
                queue_s=max(queue_s, 0.0), tokenize_s=self._tokenize_s, infer_s=self._infer_s
            )
            self.future.set_result(self._outputs(timings))

    def leave_queue(self) -> None:
        """Ends the span of the queue, as a batch with texts of the group starts."""
        if self.queue_span is not None:
            self.queue_span.end()

    def _end_queue_span(self, future: asyncio.Future[Outputs | EmbedServeError]) -> None:
        error = asyncio.CancelledError() if future.cancelled() else future.result()
        if self.queue_span is not None:
            self.queue_span.end(error=error if isinstance(error, BaseException) else None)

    def add_inference_time(self, seconds: float) -> None:
        """Adds the duration of a batch that held texts of the group."""
        self._infer_s += seconds

    def fail(self, error: EmbedServeError) -> None:
        """Resolves the group's future to an error, unless it is done."""
        if not self.future.done():
            self.future.set_result(error)

    def _outputs(self, timings: Timings) -> Outputs:
        tiers = np.full(len(self._tokens), Tier.COMPUTED, dtype=np.uint8)
        if self.text_group.task in RAGGED_TASKS:
            return RaggedVectors(self._results, self._tokens, self._truncated, tiers, timings)
        return Vectors(np.array(self._results), self._tokens, self._truncated, tiers, timings)


class PendingGroup(QueuedGroup):
    """A group of texts for an engine.

    The errors of its `future` are `InvalidRequest`, `Overloaded`, `DeadlineExceeded`,
    `InferenceError` and `Unavailable`.
    """

    def __init__(self, group: TextGroup, engine: Engine, model: str = "") -> None:
        """Creates a group.

        Args:
            group: the texts.
            engine: computes them.
            model: name of the engine's model.
        """
        super().__init__(group)
        self.engine = engine
        self.inputs = group.prompted_inputs
        self.queue = QueueKey(model, group.task, group.lane)

    def split(
        self, rows: Sequence[ModelInput], *, arrival_s: float, tokenize_s: float
    ) -> list["QueuedText"]:
        """Returns one `QueuedText` for each text; fails the group if its result is too large.

        Args:
            rows: one item for each text.
            arrival_s: time of arrival by the scheduler's clock.
            tokenize_s: duration of tokenization.
        """
        self._expect(
            [row.length for row in rows], [row.truncated for row in rows], arrival_s, tokenize_s
        )
        if self.queue.task == "embed_tokens" and self.tokens_in_queue > _MAX_TOKEN_VECTORS:
            self.fail(
                InvalidRequest(
                    f"The texts have {self.tokens_in_queue} tokens; one request returns the "
                    f"vectors of at most {_MAX_TOKEN_VECTORS} tokens. Send fewer texts in one "
                    "request.",
                    "texts",
                )
            )
            self.tokens_in_queue = 0
            return []
        return [QueuedText(self, i, row, row.length) for i, row in enumerate(rows)]


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text in the queue."""

    group: PendingGroup
    index: int  #: its position in the group
    row: ModelInput
    length: int  #: number of tokens

    def quote(self) -> str:
        """Returns the beginning of the text for an error message."""
        content = self.group.text_group.texts[self.index]
        if not isinstance(content, str | tuple):
            return f"input {self.index}"
        ellipsis = "…" if len(content) > _MAX_QUOTED_CHARS else ""
        return f"the text {content[:_MAX_QUOTED_CHARS]!r}{ellipsis}"


def fail_all(texts: Iterable[QueuedText], error: EmbedServeError) -> None:
    """Fails the groups of texts."""
    for text in texts:
        text.group.fail(error)


def fail_text(text: QueuedText, error: Exception) -> None:
    """Fails the group of a text that the engine can't compute."""
    logger.error("The engine failed on a text of %d tokens", text.length, exc_info=error)
    text.group.fail(InferenceError(f"The model failed on {text.quote()}: {type(error).__name__}."))


def padded_tokens(batch: Sequence[QueuedText]) -> int:
    """Returns the tokens of a batch, with those that pad each text to the longest one."""
    return max(text.length for text in batch) * len(batch)


def set_results(batch: Sequence[QueuedText], output: Rows, start_s: float, seconds: float) -> None:
    """Delivers the outputs of a batch, of shape (n, …), to the groups of its texts.

    A group fails whose output isn't finite.
    """
    for group in {id(text.group): text.group for text in batch}.values():
        group.add_inference_time(seconds)
    for text, result, is_finite in zip(batch, output, finite_mask(output), strict=True):
        if is_finite:
            text.group.set_result(text.index, result, start_s + seconds)
        else:
            message = f"The model returned a non-finite vector for {text.quote()}."
            text.group.fail(InferenceError(message))
