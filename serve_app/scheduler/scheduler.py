"""Feeds one engine from a queue of texts.

What waits is texts, not requests: each time the engine is free, the next batch is packed from
the oldest waiting text and the waiting ones of most similar length, inside a budget of padded
tokens. There is no timed wait: an idle engine starts at once, and while it is busy the next
batch grows by itself.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from itertools import chain, islice
from typing import Any

from serve_app.config import EmbedderSettings
from serve_app.engines.base import Engine, TokenIds
from serve_app.errors import (
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.metrics import (
    BATCH_FAILURES,
    BATCH_SECONDS,
    BATCH_TEXTS,
    BATCH_TOKENS,
    BATCHES,
    BUDGET_TOKENS,
    PADDED_TOKENS,
    QUEUED_TOKENS,
    REFUSED,
    Meter,
    Metric,
)
from serve_app.scheduler.batch_budget import BatchBudget
from serve_app.scheduler.load import LoadMeter
from serve_app.scheduler.pending import PendingGroup, QueuedText, Values
from serve_app.scheduler.queues import TextQueues
from serve_app.types import Input

logger = logging.getLogger(__name__)

_MAX_RETRY_AFTER_S = 60
#: Texts of fewer letters together are tokenised in place: handing them to a thread takes longer.
_TOKENIZE_HERE = 2000
_QUOTED = 60
_STOPPING = "The replica is shutting down; try again."


class Scheduler:
    """Packs waiting texts into batches for one engine. For one event loop."""

    def __init__(
        self,
        engine: Engine,
        settings: EmbedderSettings,
        *,
        engine_threads: Executor,
        tokenizer_thread: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Feeds an engine.

        Args:
            engine: computes; as many of its batches run at a time as it has streams.
            settings: may be replaced at any time; the next batch is packed by the new ones.
            engine_threads: at least one thread for each of the engine's streams.
            tokenizer_thread: where long texts are tokenised meanwhile.
            clock: seconds; only differences count.
        """
        self._engine = engine
        self.settings = settings
        self._engine_threads = engine_threads
        self._tokenizer_thread = tokenizer_thread
        self._clock = clock
        self._lanes = TextQueues()
        self._budget = BatchBudget()
        self._arrived = asyncio.Event()
        self._batches_started: dict[int, float] = {}
        self._runners: list[asyncio.Task[None]] = []
        self._stopping = False
        self.load = LoadMeter(clock)
        self.meter = Meter()

    def start(self) -> None:
        """Starts to work, once; call it on the loop that will submit."""
        if not self._runners:
            loop = asyncio.get_running_loop()
            streams = range(self._engine.streams)
            self._runners = [loop.create_task(self._run(stream)) for stream in streams]

    async def stop(self) -> None:
        """Stops working; whoever still waits, or comes, is answered with `Unavailable`."""
        self._stopping = True
        for runner in self._runners:
            runner.cancel()
        await asyncio.gather(*self._runners, return_exceptions=True)
        _fail(self._lanes.take_all(), Unavailable(_STOPPING))

    async def submit(self, submissions: Sequence[PendingGroup[Any]]) -> None:
        """Tokenises submissions together and queues each whole, or refuses it whole."""
        arrived_s = self._clock()
        texts = list(chain.from_iterable(submission.texts for submission in submissions))
        try:
            tokenized = await self._tokenize(texts)
        except InvalidRequest as error:
            await self._submit_each(submissions, error)
            return
        except Exception as error:
            logger.exception("The tokenizer failed on %d texts", len(texts))
            for submission in submissions:
                submission.fail(InferenceError(f"The tokenizer failed: {type(error).__name__}."))
            return
        took_s = self._clock() - arrived_s
        rest = iter(tokenized)
        for submission in submissions:
            own = list(islice(rest, len(submission.texts)))
            if not submission.reply.done():
                waiting = submission.tokenized(own, arrived_s=arrived_s, tokenize_s=took_s)
                self._admit(submission, waiting)

    async def _submit_each(
        self, submissions: Sequence[PendingGroup[Any]], error: InvalidRequest
    ) -> None:
        """After one of them was refused: it fails alone."""
        if len(submissions) == 1:
            submissions[0].fail(error)
            return
        for submission in submissions:
            await self.submit([submission])

    def check(self) -> None:
        """Tells whether the engine still moves.

        Raises:
            InferenceError: one batch has been running for longer than `stall_timeout_s`, or a task
                of the scheduler has ended.
        """
        if any(runner.done() for runner in self._runners) and not self._stopping:
            raise InferenceError("The scheduler has stopped. This is a bug.")
        for started in self._batches_started.values():
            running_s = self._clock() - started
            if running_s > self.settings.stall_timeout_s:
                raise InferenceError(f"One batch has been running for {running_s:.0f} s.")

    async def _tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        if sum(map(len, texts)) <= _TOKENIZE_HERE:
            return self._engine.tokenize(texts)
        return await asyncio.get_running_loop().run_in_executor(
            self._tokenizer_thread, self._engine.tokenize, texts
        )

    def _admit(self, submission: PendingGroup[Any], waiting: Sequence[QueuedText]) -> None:
        tokens, queued = submission.waiting_tokens, self.load.queued_tokens
        if self._stopping:
            submission.fail(Unavailable(_STOPPING))
            return
        if tokens > self.settings.max_request_tokens:
            most = self.settings.max_request_tokens
            message = f"The texts have {tokens} tokens; at most {most} are taken. Send fewer."
            submission.fail(InvalidRequest(message, "texts"))
            self.meter.add(REFUSED, 1, InvalidRequest.code)
            return
        if queued and queued + tokens > self.settings.max_queued_tokens:
            speed = self.load.tokens_per_s
            wait_s = math.ceil(queued / speed) if speed else 1
            message = f"{queued} tokens are waiting already and {tokens} more don't fit; try later."
            submission.fail(Overloaded(message, max(1, min(wait_s, _MAX_RETRY_AFTER_S))))
            self.meter.add(REFUSED, 1, Overloaded.code)
            return
        self.load.arrive(tokens)
        submission.reply.add_done_callback(lambda _: self._forget(submission))
        self._lanes.put(waiting)
        self._arrived.set()

    def _forget(self, submission: PendingGroup[Any]) -> None:
        """It was answered, or its caller left: what of it still waits counts no more."""
        self.load.leave(submission.waiting_tokens)
        submission.waiting_tokens = 0

    async def _run(self, stream: int) -> None:
        while True:
            await self._arrived.wait()
            limit = self.settings.max_batch_tokens
            batch = self._lanes.next_batch(self.settings, self._budget.tokens(limit), self._clock())
            if batch:
                await self._take(batch, stream)
            else:
                self._arrived.clear()

    async def _take(self, batch: Sequence[QueuedText], stream: int) -> None:
        """Computes a batch that was just taken out of the queue."""
        tokens = sum(waiting.length for waiting in batch)
        for waiting in batch:
            waiting.submission.waiting_tokens -= waiting.length
        try:
            await self._compute(batch, stream)
        except asyncio.CancelledError:
            _fail(batch, Unavailable(_STOPPING))
            raise
        finally:
            self.load.leave(tokens)

    async def _compute(self, batch: Sequence[QueuedText], stream: int) -> None:
        """Runs a batch; where that fails, each half of it, so that one bad text fails alone."""
        started = self._clock()
        try:
            values = await self._run_engine(batch, stream)
        except InvalidRequest as error:  # of any text the same: this engine can't do it
            _fail(batch, error)
            return
        except Exception as error:
            halves = self._halves(batch, error)
        else:
            self._deliver(batch, values, started, self._clock() - started)
            return
        for half in halves:
            await self._compute(half, stream)

    async def _run_engine(self, batch: Sequence[QueuedText], stream: int) -> Values:
        loop = asyncio.get_running_loop()
        self._batches_started[stream] = self._clock()
        self.load.begin()
        computed = 0
        try:
            values = await loop.run_in_executor(
                self._engine_threads,
                batch[0].submission.compute,
                self._engine,
                [waiting.tokens for waiting in batch],
            )
            computed = sum(waiting.length for waiting in batch)
            return values
        finally:
            self.load.end(computed)
            del self._batches_started[stream]

    def _halves(self, batch: Sequence[QueuedText], error: Exception) -> list[Sequence[QueuedText]]:
        """What to try after a failure; nothing when the batch was one text, which has failed."""
        self.meter.add(BATCH_FAILURES)
        if isinstance(error, MemoryError):
            padded = max(waiting.length for waiting in batch) * len(batch)
            logger.warning("Out of memory at %d texts, %d tokens", len(batch), padded)
            self._budget.out_of_memory(padded)
        if len(batch) == 1:
            _fail_alone(batch[0], error)
            return []
        half = len(batch) // 2
        return [batch[:half], batch[half:]]

    def _deliver(
        self, batch: Sequence[QueuedText], values: Values, started: float, seconds: float
    ) -> None:
        self._measure(batch, seconds)
        usable = batch[0].submission.usable(values)
        for submission in {id(w.submission): w.submission for w in batch}.values():
            submission.ran(seconds)
        for waiting, value, finite in zip(batch, values, usable, strict=True):
            if finite:
                waiting.submission.finish(waiting.index, value, started + seconds)
            else:
                waiting.submission.fail(
                    InferenceError(f"The model gave no finite vector for {_quote(waiting)}.")
                )

    def _measure(self, batch: Sequence[QueuedText], seconds: float) -> None:
        lengths = [waiting.length for waiting in batch]
        tokens, padded = sum(lengths), max(lengths) * len(batch)
        self._budget.ran(
            padded,
            seconds,
            target_s=self.settings.batch_target_s,
            limit=self.settings.max_batch_tokens,
        )
        self.meter.add(BATCHES)
        self.meter.add(BATCH_TEXTS, len(batch))
        self.meter.add(BATCH_TOKENS, tokens)
        self.meter.add(PADDED_TOKENS, padded)
        self.meter.add(BATCH_SECONDS, seconds)

    def gauges(self) -> dict[Metric, float]:
        """What goes up and down."""
        return {
            QUEUED_TOKENS: self.load.queued_tokens,
            BUDGET_TOKENS: self._budget.tokens(self.settings.max_batch_tokens),
        }


def _fail(texts: Iterable[QueuedText], error: EmbedServeError) -> None:
    for waiting in texts:
        waiting.submission.fail(error)


def _fail_alone(waiting: QueuedText, error: Exception) -> None:
    logger.error("The engine failed on a text of %d tokens", waiting.length, exc_info=error)
    waiting.submission.fail(
        InferenceError(f"The model failed on {_quote(waiting)}: {type(error).__name__}.")
    )


def _quote(waiting: QueuedText) -> str:
    text = waiting.submission.group.texts[waiting.index]
    return f"the text {text[:_QUOTED]!r}{'…' if len(text) > _QUOTED else ''}"
