"""Packs queued texts into batches for the engines of a process.

The queues hold texts, not requests. Whenever an engine is free, the next batch is packed from the
oldest text and the texts closest to it in length, within a budget of padded tokens. There is no
batching timeout: an idle engine starts at once, and while it is busy the next batch grows.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from itertools import chain, islice

from serve_app.config import EmbedderSettings
from serve_app.engines.base import Rows
from serve_app.errors import EmbedServeError, InferenceError, InvalidRequest, Unavailable
from serve_app.meter import Gauges, Meter
from serve_app.metrics import (
    BATCH_DURATION,
    BATCH_FAILURES,
    BATCH_SIZE,
    BUDGET_TOKENS,
    BUSY_SHARE,
    CAPACITY,
    OLDEST_INTERACTIVE,
    PADDED_TOKENS,
    QUEUE_DURATION,
    QUEUED_TEXTS,
    QUEUED_TOKENS,
    REFUSED,
    TEXT_LENGTH,
)
from serve_app.scheduler.admission import QueueAdmission, is_large, too_many_tokens
from serve_app.scheduler.batch_budget import BatchBudget, BatchBudgets
from serve_app.scheduler.batch_span import batch_span
from serve_app.scheduler.load import LoadMeter
from serve_app.scheduler.model_speed import ComputedBatch
from serve_app.scheduler.model_speeds import ModelSpeeds
from serve_app.scheduler.pending import (
    PendingGroup,
    QueuedText,
    QueueKey,
    fail_all,
    fail_text,
    padded_tokens,
    set_results,
)
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.scheduler.queues import TextQueues
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.scheduler.running_batches import RunningBatch
from serve_app.scheduler.tokenization import tokenize
from serve_app.types import LANES, Lane

logger = logging.getLogger(__name__)

_SHUTTING_DOWN = "The replica is shutting down; try again."


class Scheduler:
    """Schedules the texts of pending groups on their engines. Belongs to one event loop."""

    def __init__(
        self,
        settings: EmbedderSettings,
        *,
        streams: int,
        engine_threads: Executor,
        tokenizer_thread: Executor,
        meter: Meter | None = None,
        speeds: ModelSpeeds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a scheduler that is idle until `start`.

        Args:
            settings: may be replaced at any time; they apply from the next batch on.
            streams: how many batches run at a time; of one engine, at most its own streams.
            engine_threads: at least one thread for each stream.
            tokenizer_thread: tokenizes long texts next to the engines.
            meter: counts batches.
            speeds: of the models, some of which may be known.
            clock: monotonic time in seconds.
        """
        self.settings = settings
        self._streams = streams
        self._engine_threads = engine_threads
        self._tokenizer_thread = tokenizer_thread
        self._clock = clock
        self._queues = TextQueues()
        self._admission: dict[QueueKey, QueueAdmission[QueuedText]] = {}
        self._budgets = BatchBudgets(streams, clock)
        self._work_available = asyncio.Event()
        self._engine_streams: dict[str, int] = {}  # by model; the engines may be unloaded
        self._workers: list[asyncio.Task[None]] = []
        self._stopping = False
        self.load = LoadMeter(clock)
        self._speeds = speeds or ModelSpeeds(clock)
        self.meter = meter or Meter()

    def start(self) -> None:
        """Starts one worker task for each stream. Idempotent; call it on the submitting loop."""
        if not self._workers:
            loop = asyncio.get_running_loop()
            self._workers = [loop.create_task(self._work()) for _ in range(self._streams)]

    async def stop(self) -> None:
        """Stops the workers and fails queued and later groups with `Unavailable`."""
        self._stopping = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        waiting = [self._queues.drain(), *(queue.drain() for queue in self._admission.values())]
        fail_all(chain.from_iterable(waiting), Unavailable(_SHUTTING_DOWN))

    async def submit(self, groups: Sequence[PendingGroup]) -> None:
        """Tokenizes groups together, then queues or rejects each as a whole.

        Never raises; errors resolve the futures of the groups.
        """
        by_model: dict[str, list[PendingGroup]] = {}
        for group in groups:
            by_model.setdefault(group.queue.model, []).append(group)
        if len(by_model) == 1:
            await self._submit(groups)
        else:
            await asyncio.gather(*map(self._submit, by_model.values()))

    async def _submit(self, groups: Sequence[PendingGroup]) -> None:
        """Submits groups of one model."""
        arrival_s = self._clock()
        inputs = list(chain.from_iterable(group.inputs for group in groups))
        try:
            rows = await tokenize(groups, inputs, self._tokenizer_thread, self._is_rejected)
        except InvalidRequest as error:
            await self._submit_separately(groups, error)
            return
        except Exception as error:
            logger.exception("The tokenizer failed on %d texts", len(inputs))
            for group in groups:
                group.fail(InferenceError(f"The tokenizer failed: {type(error).__name__}."))
            return
        encoded, tokenize_s = iter(rows), self._clock() - arrival_s
        for group in groups:
            rows = list(islice(encoded, len(group.inputs)))
            if not group.future.done():
                self._admit(group, group.split(rows, arrival_s=arrival_s, tokenize_s=tokenize_s))

    async def _submit_separately(
        self, groups: Sequence[PendingGroup], error: InvalidRequest
    ) -> None:
        """Submits each group by itself, so that only the invalid ones fail."""
        if len(groups) == 1:
            groups[0].fail(error)
            return
        for group in groups:
            await self._submit([group])

    def check_health(self) -> None:
        """Checks that the workers and the engine make progress.

        Raises:
            InferenceError: a batch has been running for longer than `stall_timeout_s`, or a worker
                task has ended.
        """
        if any(worker.done() for worker in self._workers) and not self._stopping:
            raise InferenceError("The scheduler has stopped. This is a bug.")
        running_s = self.load.longest_batch_s
        if running_s > self.settings.stall_timeout_s:
            raise InferenceError(f"One batch has been running for {running_s:.0f} s.")

    def _is_rejected(self, group: PendingGroup, tokens: int) -> bool:
        """Rejects a large group while it is tokenized, if it would be refused in the end."""
        # With more tokens, a large group that is refused would be refused as well.
        refusal = None
        if is_large(tokens, self.settings.max_queued_tokens):
            refusal = self._refusal(group, tokens)
        if refusal is not None:
            self._reject(group, refusal)
        return refusal is not None

    def _admit(self, group: PendingGroup, texts: Sequence[QueuedText]) -> None:
        tokens, admission = group.tokens_in_queue, self._queue_admission(group.queue)
        refusal = self._refusal(group, tokens)
        if refusal is not None:
            self._reject(group, refusal)
            return
        is_arrival = not group.text_group.is_resent
        self.load.admit(group.queue.lane, tokens, is_arrival=is_arrival)
        if group.queue.lane == "interactive":
            self._budgets.record_interactive()
        group.future.add_done_callback(lambda _: self._release(group))
        self._queue(admission.admit(group, texts, self.settings.max_queued_tokens))

    def _refusal(self, group: PendingGroup, tokens: int) -> EmbedServeError | None:
        """Returns why a group of at least this many tokens can't be admitted now."""
        settings = self.settings
        if self._stopping:
            return Unavailable(_SHUTTING_DOWN)
        if tokens > settings.max_request_tokens:
            return too_many_tokens(tokens, settings.max_request_tokens)
        return self._queue_admission(group.queue).refusal(
            tokens,
            group.text_group.deadline_s - self._clock(),
            limit=settings.max_queued_tokens,
            tokens_per_s=self.load.tokens_per_s,
        )

    def _reject(self, group: PendingGroup, refusal: EmbedServeError) -> None:
        group.fail(refusal)
        self.meter.add(REFUSED, 1, refusal.code, group.queue.lane, group.queue.model)

    def _queue_admission(self, key: QueueKey) -> QueueAdmission[QueuedText]:
        if key not in self._admission:
            self._admission[key] = QueueAdmission(key.lane, self._clock)
        return self._admission[key]

    def _queue(self, texts: Sequence[QueuedText]) -> None:
        if texts:
            self._queues.put(texts)
            group = texts[0].group
            self._engine_streams[group.queue.model] = group.engine.streams
            self._work_available.set()

    def _release(self, group: PendingGroup) -> None:
        """Releases the texts of a finished or cancelled group that still wait for a batch."""
        if not group.tokens_in_queue:
            return
        if not group.has_started and not group.future.cancelled():  # its time is up
            self._record_wait(group)
        admission = self._admission[group.queue]
        self.load.release(group.queue.lane, group.tokens_in_queue)
        admission.release(group)
        group.tokens_in_queue = 0
        self._queue(admission.next_part(self.settings.max_queued_tokens))

    def _record_wait(self, group: PendingGroup) -> None:
        group.has_started = True
        waited_s = self._clock() - group.arrival_s
        self.meter.observe(QUEUE_DURATION, waited_s, group.queue.lane, group.queue.model)

    async def _work(self) -> None:
        """Runs one batch after another."""
        while True:
            await self._work_available.wait()
            if not await self._run_next_batch():
                self._work_available.clear()

    async def _run_next_batch(self) -> bool:
        """Runs a batch; returns False if no texts wait that may run now."""
        batch = self._queues.next_batch(self.settings, self._max_batch_tokens, self._clock())
        if batch:
            await self._run_batch(batch)
        return bool(batch)

    def _max_batch_tokens(self, key: QueueKey) -> int:
        """Returns the limit of the next batch of a queue; 0: all streams of its engine run."""
        if self.load.running_batches(key.model) >= self._engine_streams[key.model]:
            return 0
        return self._select_budget(key.model).tokens(self.settings.max_batch_tokens)

    def _select_budget(self, model: str) -> BatchBudget:
        interactive_tokens = sum(
            queue.tokens for key, queue in self._admission.items() if key.lane == "interactive"
        )
        return self._budgets.select(model, interactive_tokens, self.settings.max_batch_tokens)

    async def _run_batch(self, batch: Sequence[QueuedText]) -> None:
        key, engine = batch[0].group.queue, batch[0].group.engine
        budget = self._select_budget(key.model)
        tokens = sum(text.length for text in batch)
        for text in batch:
            text.group.tokens_in_queue -= text.length
            if not text.group.has_started:
                self._record_wait(text.group)
        admission = self._admission[key]
        if admission.has_backlog:
            self._queue(admission.next_part(self.settings.max_queued_tokens))
        try:
            await self._compute(batch, budget)
        except asyncio.CancelledError:
            fail_all(batch, Unavailable(_SHUTTING_DOWN))
            raise
        finally:
            if engine.streams < self._streams:
                self._work_available.set()  # other workers found this engine busy
            self.load.release(key.lane, tokens)
            admission.complete(tokens)

    async def _compute(self, batch: Sequence[QueuedText], budget: BatchBudget) -> None:
        """Computes a batch. Bisects it on failure, so that only the group of a bad text fails."""
        run = self.load.start_batch(batch[0].group.queue.model)
        try:
            with batch_span("batch", batch, {"embedserve.model": run.model}):
                output = await self._run_engine(batch, run)
        except InvalidRequest as error:  # the engine lacks the operation, whatever the text
            fail_all(batch, error)
            return
        except Exception as error:
            halves = self._bisect(batch, error)
        else:
            self._record_batch(batch, run, budget)
            set_results(batch, output, run.start_s, run.seconds)
            return
        for half in halves:
            await self._compute(half, budget)

    async def _run_engine(self, batch: Sequence[QueuedText], run: RunningBatch) -> Rows:
        loop = asyncio.get_running_loop()
        computed_tokens, group = 0, batch[0].group
        try:
            output = await loop.run_in_executor(
                self._engine_threads,
                group.engine.run,
                group.queue.task,
                [text.row for text in batch],
            )
            computed_tokens = sum(text.length for text in batch)
            return output
        finally:
            self.load.end_batch(run, computed_tokens)

    def _bisect(self, batch: Sequence[QueuedText], error: Exception) -> list[Sequence[QueuedText]]:
        """Returns the halves of a failed batch. Fails the group of a single text instead."""
        model = batch[0].group.queue.model
        self.meter.add(BATCH_FAILURES, 1, model)
        if isinstance(error, MemoryError):
            padded = padded_tokens(batch)
            logger.warning("Out of memory at %d texts, %d tokens", len(batch), padded)
            self._budgets.record_out_of_memory(model, padded)
        if len(batch) == 1:
            fail_text(batch[0], error)
            return []
        half = len(batch) // 2
        return [batch[:half], batch[half:]]

    def _record_batch(
        self, batch: Sequence[QueuedText], run: RunningBatch, budget: BatchBudget
    ) -> None:
        settings, padded = self.settings, padded_tokens(batch)
        limit = settings.max_batch_tokens
        is_full = 2 * padded >= budget.tokens(limit) or 2 * len(batch) >= settings.max_batch_texts
        budget.record_batch(padded, run.seconds, target_s=settings.batch_target_s, limit=limit)
        self._speeds.record(
            run.model,
            batch[0].group.engine.streams,
            ComputedBatch(len(batch), run.tokens, padded, run.seconds, run.concurrency, is_full),
        )
        self.meter.add(PADDED_TOKENS, padded, run.model)
        self.meter.observe(BATCH_DURATION, run.seconds, run.model)
        self.meter.observe(BATCH_SIZE, len(batch), run.model)
        self.meter.observe_all(TEXT_LENGTH, (text.length for text in batch), run.model)

    def sample_load(self) -> ReplicaLoad:
        """Returns the load; rates are over the time since the previous call."""
        return self.load.report(
            oldest_interactive_s=self._oldest_s("interactive"),
            capacity_tokens_per_s=self._speeds.capacity_tokens_per_s(self.settings),
        )

    def _oldest_s(self, lane: Lane) -> float:
        """Returns for how long the oldest text of a lane has waited; 0: none waits."""
        arrival_s = self._queues.oldest_arrival_s(lane)
        return 0.0 if arrival_s is None else self._clock() - arrival_s

    def sample(self) -> PoolSample:
        """Returns the state of the queues and the engines."""
        queued = Counter[tuple[Lane, str]]()
        for key, queue in self._admission.items():
            queued[key.lane, key.model] += queue.tokens
        return PoolSample(
            dict(queued),
            {lane: self._oldest_s(lane) for lane in LANES},
            self._budget_tokens(),
            self.load.busy_s,
        )

    def _budget_tokens(self) -> Mapping[str, int]:
        limit = self.settings.max_batch_tokens
        return {model: self._select_budget(model).tokens(limit) for model in self._budgets.models}

    def gauges(self) -> Gauges:
        """Returns the current value of each gauge."""
        return {
            QUEUED_TOKENS: {
                (key.lane, key.task, key.model): queue.tokens
                for key, queue in self._admission.items()
            },
            QUEUED_TEXTS: {
                (key.lane, key.task, key.model): self._queues.count(key) + queue.backlog_texts
                for key, queue in self._admission.items()
            },
            BUDGET_TOKENS: {(model,): n for model, n in self._budget_tokens().items()},
            BUSY_SHARE: self.load.busy_share(),
            OLDEST_INTERACTIVE: self._oldest_s("interactive"),
            CAPACITY: {(model,): n for model, n in self._speeds.capacities(self.settings).items()},
        }
