"""Feeds one engine from a queue of texts.

What waits is texts, not requests: each time the engine is free, the next batch is packed from
the oldest waiting text and the waiting ones of most similar length, inside a budget of padded
tokens. There is no timed wait: an idle engine starts at once, and while it is busy the next
batch grows by itself. Tokenising runs in a thread of its own, so it overlaps computing.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from serve_app.config import EmbedderSettings
from serve_app.engine.base import Engine, TokenIds
from serve_app.engine.load import LoadMeter
from serve_app.errors import EmbedServeError, EngineFailed, Overloaded, Unavailable
from serve_app.types import Bool, Float32, Int32, Vectors

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER_S = 60


class Submission:
    """Texts on their way into the queue, and the caller's hold on them.

    `reply` is answered with the texts' `Vectors`, or with the error that stands for them:
    `Overloaded`, `EngineFailed`, `Unavailable`. Cancelling it takes what still waits out of the
    queue, at any time.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.reply: asyncio.Future[Vectors | EmbedServeError] = (
            asyncio.get_running_loop().create_future()
        )


class _Group:
    """Texts that were submitted together and are answered together."""

    def __init__(self, tokenized: Sequence[TokenIds], dim: int, submission: Submission) -> None:
        n = len(tokenized)
        self.reply = submission.reply
        self.values: Float32 = np.empty((n, dim), dtype=np.float32)
        self.tokens: Int32 = np.array([len(t.ids) for t in tokenized], dtype=np.int32)
        self.truncated: Bool = np.array([t.truncated for t in tokenized], dtype=np.bool_)
        self.remaining = n
        #: Tokens that wait for a batch: all at first, none once the last text was taken.
        self.waiting_tokens = int(self.tokens.sum())

    def finish(self, index: int, vector: Float32) -> None:
        """Takes one text's vector; with the last one, the group is answered."""
        self.values[index] = vector
        self.remaining -= 1
        if self.remaining == 0 and not self.reply.done():
            self.reply.set_result(
                Vectors(self.values, self.tokens, self.truncated, len(self.tokens))
            )

    def fail(self, error: EmbedServeError) -> None:
        """Answers the whole group with an error."""
        if not self.reply.done():
            self.reply.set_result(error)


@dataclass(slots=True)
class _Waiting:
    """One text in the queue."""

    group: _Group
    index: int
    tokens: TokenIds

    @property
    def length(self) -> int:
        return len(self.tokens.ids)

    @property
    def wanted(self) -> bool:
        return not self.group.reply.done()


class Scheduler:
    """Packs waiting texts into batches for one engine. For one event loop."""

    def __init__(
        self,
        engine: Engine,
        settings: EmbedderSettings,
        *,
        engine_thread: ThreadPoolExecutor,
        tokenizer_thread: ThreadPoolExecutor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self.settings = settings
        self._engine_thread = engine_thread
        self._tokenizer_thread = tokenizer_thread
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._batch_started: float | None = None
        self._runner: asyncio.Task[None] | None = None
        self.load = LoadMeter(clock)

    def start(self) -> None:
        """Starts to work, once; call it on the loop that will submit."""
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stops working; whoever still waits is answered with `Unavailable`."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        _fail(self._waiting, Unavailable("The replica is shutting down; try again."))
        self._waiting.clear()

    async def submit(self, submissions: Sequence[Submission]) -> None:
        """Tokenises submissions together and queues each whole, or refuses it whole."""
        texts = list(chain.from_iterable(submission.texts for submission in submissions))
        try:
            tokenized = await asyncio.get_running_loop().run_in_executor(
                self._tokenizer_thread, self._engine.tokenize, texts
            )
        except Exception as error:
            logger.exception("The tokenizer failed on %d texts", len(texts))
            failure = EngineFailed(f"The tokenizer failed: {type(error).__name__}.")
            for submission in submissions:
                if not submission.reply.done():
                    submission.reply.set_result(failure)
            return
        rest = iter(tokenized)
        for submission in submissions:
            own = list(islice(rest, len(submission.texts)))
            if not submission.reply.done():
                self._admit(_Group(own, self._engine.dim, submission), own)

    def check(self) -> None:
        """Tells whether the engine still moves.

        Raises:
            EngineFailed: one batch has been running for longer than `stall_timeout_s`, or the
                scheduler's own task has ended.
        """
        if self._runner is not None and self._runner.done():
            raise EngineFailed("The scheduler has stopped. This is a bug.")
        if self._batch_started is None:
            return
        running_s = self._clock() - self._batch_started
        if running_s > self.settings.stall_timeout_s:
            raise EngineFailed(f"One batch has been running for {running_s:.0f} s.")

    def _admit(self, group: _Group, tokenized: Sequence[TokenIds]) -> None:
        tokens, queued = group.waiting_tokens, self.load.queued_tokens
        if queued and queued + tokens > self.settings.max_queued_tokens:
            speed = self.load.tokens_per_s
            wait_s = math.ceil(queued / speed) if speed else 1
            message = f"{queued} tokens are waiting already and {tokens} more don't fit; try later."
            group.fail(Overloaded(message, max(1, min(wait_s, _MAX_RETRY_AFTER_S))))
            return
        self.load.arrive(tokens)
        group.reply.add_done_callback(lambda _: self._forget(group))
        self._waiting.extend(_Waiting(group, i, text) for i, text in enumerate(tokenized))
        self._arrived.set()

    def _forget(self, group: _Group) -> None:
        """A group was answered, or its caller left: what of it still waits counts no more."""
        self.load.leave(group.waiting_tokens)
        group.waiting_tokens = 0

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if batch:
                await self._compute(batch)
            else:
                self._arrived.clear()

    async def _compute(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        tokens = sum(waiting.length for waiting in batch)
        self._batch_started = started = self._clock()
        try:
            vectors = await loop.run_in_executor(
                self._engine_thread, self._engine.embed, [waiting.tokens for waiting in batch]
            )
        except asyncio.CancelledError:
            _fail(batch, Unavailable("The replica is shutting down; try again."))
            raise
        except Exception as error:
            logger.exception("The engine failed on a batch of %d texts", len(batch))
            _fail(batch, EngineFailed(f"The model failed: {type(error).__name__}."))
        else:
            self.load.computed(tokens, self._clock() - started)
            usable: Bool = np.isfinite(vectors.sum(axis=1))
            for waiting, vector, finite in zip(batch, vectors, usable, strict=True):
                if finite:
                    waiting.group.finish(waiting.index, vector)
                else:
                    waiting.group.fail(EngineFailed("The model gave a vector that isn't finite."))
        finally:
            self._batch_started = None
            self.load.leave(tokens)

    def _next_batch(self) -> list[_Waiting]:
        """Takes the next batch out of the queue; empty when nothing waits that anybody wants."""
        window: list[_Waiting] = []
        while self._waiting and len(window) < self.settings.lookahead_texts:
            waiting = self._waiting.popleft()
            if waiting.wanted:
                window.append(waiting)
        if not window:
            return []
        oldest = window[0].length
        nearest = sorted(range(len(window)), key=lambda i: abs(window[i].length - oldest))
        longest, taken = 0, set[int]()
        for i in nearest[: self.settings.max_batch_texts]:
            longest = max(longest, window[i].length)
            if taken and longest * (len(taken) + 1) > self.settings.budget_tokens:
                break
            taken.add(i)
        self._waiting.extendleft(
            window[i] for i in range(len(window) - 1, -1, -1) if i not in taken
        )
        batch = [window[i] for i in sorted(taken)]
        for waiting in batch:
            waiting.group.waiting_tokens -= waiting.length
        return batch


def _fail(texts: Iterable[_Waiting], error: EmbedServeError) -> None:
    for waiting in texts:
        waiting.group.fail(error)
