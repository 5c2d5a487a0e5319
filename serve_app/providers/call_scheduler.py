"""Packs queued texts into calls of a provider.

groups → token counts → admission → queues → calls → groups

There is no timed wait: while as many calls run as may, texts queue, and the next call takes as many
of them as the provider allows.
"""

import asyncio
import contextvars
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from serve_app.config import ProviderSettings, QueueSettings
from serve_app.errors import (
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    TextTooLong,
    Unavailable,
)
from serve_app.meter import ModelMeter
from serve_app.metrics import QUEUE_DURATION, REFUSED
from serve_app.model_spec import ModelSpec
from serve_app.providers.base import Provider
from serve_app.providers.call_gate import CallGate
from serve_app.providers.provider_caller import ProviderCaller
from serve_app.providers.provider_group import (
    PromptQueue,
    ProviderGroup,
    ProviderText,
    fail_groups,
    groups_of,
)
from serve_app.providers.token_counts import estimate_tokens, least_tokens
from serve_app.scheduler.admission import QueueAdmission
from serve_app.scheduler.lane_queues import LaneQueues
from serve_app.types import Lane

logger = logging.getLogger(__name__)

#: Texts of this many characters are counted at a time.
_COUNTED_CHARS = 16384
_SHUTTING_DOWN = "The replica is shutting down; try again."


class CallScheduler:
    """The queues and the calls of one model. Belongs to one event loop."""

    def __init__(
        self,
        spec: ModelSpec,
        provider: Provider,
        provider_settings: ProviderSettings,
        meter: ModelMeter,
        *,
        settings: QueueSettings,
        waits: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Creates a scheduler without texts.

        Args:
            spec: the model.
            provider: runs the model.
            provider_settings: bounds of its calls.
            meter: counts calls.
            settings: may be replaced at any time; they apply to the next group.
            waits: see `CallGate`.
            clock: monotonic time in seconds.
            sleep: waits for some seconds.
        """
        self.settings = settings
        self._spec = spec
        self._provider = provider
        self._max_calls = provider_settings.max_concurrent_calls
        self._meter = meter
        self._clock = clock
        self._sleep = sleep
        self._gate = CallGate(spec.name, clock, on_pause=self._fail_impatient, waits=waits)
        self._caller = ProviderCaller(
            spec, provider, provider_settings, self._gate, meter, clock=clock, sleep=sleep
        )
        self._queues = LaneQueues[PromptQueue, ProviderText]()
        part = provider.limits.max_tokens  # smaller parts of a large group would cost more calls
        lanes: tuple[Lane, ...] = ("interactive", "bulk")
        self._admission: dict[Lane, QueueAdmission[ProviderText]] = {
            lane: QueueAdmission(lane, clock, min_part_tokens=part) for lane in lanes
        }
        self._calls = dict[asyncio.Task[None], int]()  # their tokens
        self._dispatch_scheduled = False
        self._resume_task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def failure(self) -> Unavailable | None:
        """Why no calls are made: the breaker is open; None while it is closed."""
        return self._gate.failure

    @property
    def in_flight(self) -> int:
        """Number of calls in flight; one that waits for its retry counts."""
        return len(self._calls)

    def queued_tokens(self) -> dict[Lane, int]:
        """Returns the tokens that are queued or in flight, by lane."""
        return {lane: admission.tokens for lane, admission in self._admission.items()}

    def queued_texts(self) -> dict[Lane, int]:
        """Returns the texts that wait for a call, by lane."""
        return {
            lane: self._queues.count_lane(lane) + admission.backlog_texts
            for lane, admission in self._admission.items()
        }

    async def submit(self, groups: Sequence[ProviderGroup]) -> None:
        """Counts tokens, then queues or rejects each group as a whole.

        Never raises; errors resolve the futures of the groups.
        """
        for group in groups:
            refusal = self._refusal(group)
            if refusal is None:
                try:
                    await self._count_and_admit(group)
                except EmbedServeError as error:
                    group.fail(error)
            else:
                self._reject(group, refusal)

    async def stop(self) -> None:
        """Cancels the calls, fails all groups with `Unavailable` and closes the connections."""
        self._stopping = True
        tasks = [*self._calls, *filter(None, [self._resume_task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_queued(Unavailable(_SHUTTING_DOWN))
        await self._provider.close()

    async def _count_and_admit(self, group: ProviderGroup) -> None:
        arrival_s = self._clock()
        counted = await self._count(group)
        tokens = [estimate_tokens(text) for text in group.texts] if counted is None else counted
        least = map(least_tokens, group.texts) if counted is None else counted
        self._check_lengths(least)
        if group.future.done():
            return
        texts = group.split(tokens, is_counted=counted is not None, arrival_s=arrival_s)
        refusal = self._refusal(group) or self._admission_refusal(group)
        if refusal is not None:
            self._reject(group, refusal)
            return
        group.future.add_done_callback(lambda _: self._release(group))
        admission = self._admission[group.queue.lane]
        self._queue(admission.admit(group, texts, self.settings.max_queued_tokens))

    async def _count(self, group: ProviderGroup) -> list[int] | None:
        """Returns the tokens of each text; None if only the provider can count them."""
        counts = list[int]()
        for run in _runs(group.texts):
            if counts:
                await asyncio.sleep(0)  # so that others don't wait for all texts
            counted = self._provider.count_tokens(run, group.queue.prompt)
            if counted is None:
                return None
            counts += counted
        return counts

    def _check_lengths(self, tokens: Iterable[int]) -> None:
        limit = min(self._spec.max_tokens, self._provider.limits.max_tokens)
        for i, count in enumerate(tokens):
            if count > limit:
                raise TextTooLong(
                    f"Text {i} has at least {count} tokens; {self._spec.name} takes {limit}, and "
                    "its provider truncates nothing. Shorten the text.",
                    "texts",
                )

    def _refusal(self, group: ProviderGroup) -> EmbedServeError | None:
        """Returns why no text can be sent in time; None if one can."""
        if self._stopping:
            return Unavailable(_SHUTTING_DOWN)
        return self._gate.refusal(group.text_group.deadline_s)

    def _admission_refusal(self, group: ProviderGroup) -> EmbedServeError | None:
        tokens, settings = group.tokens_in_queue, self.settings
        limit = max(settings.max_queued_tokens, self._provider.limits.max_tokens)
        if tokens > settings.max_request_tokens:
            return InvalidRequest(
                f"The texts have about {tokens} tokens; at most {settings.max_request_tokens} are "
                "accepted. Send fewer: split the list into several requests.",
                "texts",
            )
        return self._admission[group.queue.lane].refusal(
            tokens,
            group.text_group.deadline_s - self._clock(),
            limit=limit + sum(self._calls.values()),  # which don't wait
            tokens_per_s=0.0,
        )

    def _reject(self, group: ProviderGroup, refusal: EmbedServeError) -> None:
        group.tokens_in_queue = 0
        group.fail(refusal)
        self._meter.add(REFUSED, 1, refusal.code, group.queue.lane)

    def _queue(self, texts: Sequence[ProviderText]) -> None:
        for key, run in itertools.groupby(texts, key=lambda text: text.group.queue):
            self._queues.extend(key, [*run])
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        """Dispatches after the other groups of this turn of the loop, which can share the call."""
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _release(self, group: ProviderGroup) -> None:
        """Releases the texts of a finished or cancelled group that still wait for a call."""
        if group.tokens_in_queue:
            if not group.has_started and not group.future.cancelled():  # its time is up
                self._record_wait(group)
            admission = self._admission[group.queue.lane]
            admission.release(group)
            group.tokens_in_queue = 0
            self._queue(admission.next_part(self.settings.max_queued_tokens))

    def _record_wait(self, group: ProviderGroup) -> None:
        group.has_started = True
        self._meter.observe(QUEUE_DURATION, self._clock() - group.arrival_s, group.queue.lane)

    def _dispatch(self) -> None:
        """Starts as many calls as may run."""
        self._dispatch_scheduled = False
        while len(self._calls) < self._max_calls and self._gate.may_start and not self._stopping:
            now_s = self._clock()
            if self._gate.paused_until_s > now_s:
                self._resume_later()
                return
            batch = self._queues.take(self._pack, self.settings.bulk_promotion_after_s, now_s)
            if not batch:
                return
            self._start(batch)

    def _resume_later(self) -> None:
        if self._resume_task is None:
            self._resume_task = asyncio.get_running_loop().create_task(
                self._resume(), context=contextvars.Context()
            )

    async def _resume(self) -> None:
        """Dispatches when the provider wants calls again."""
        while (pause_s := self._gate.paused_until_s - self._clock()) > 0:
            await self._sleep(pause_s)
        self._resume_task = None
        self._dispatch()

    def _fail_impatient(self) -> None:
        """Fails the queued groups that have less time than the provider's rate limit takes."""
        for text in self._queues:
            refusal = self._gate.refusal(text.group.text_group.deadline_s)
            if refusal is not None:
                text.group.fail(refusal)

    def _pack(self, _: PromptQueue, queue: deque[ProviderText]) -> list[ProviderText]:
        """Removes the texts of the next call from a queue, and those that nobody waits for."""
        limits, now_s = self._provider.limits, self._clock()
        batch, tokens = list[ProviderText](), 0
        while queue and len(batch) < limits.max_texts:
            text = queue[0]
            text.group.enforce_deadline(now_s)
            if not text.group.future.done():
                tokens += text.length
                if batch and tokens > limits.max_tokens:
                    break
                batch.append(text)
            queue.popleft()
        return batch

    def _start(self, batch: Sequence[ProviderText]) -> None:
        lane, groups = batch[0].group.queue.lane, groups_of(batch)
        tokens = sum(text.length for text in batch)
        for text in batch:
            text.group.tokens_in_queue -= text.length
            if not text.group.has_started:
                self._record_wait(text.group)
        is_probe = self._gate.start()
        # Ray cancels calls by the context they were made in.
        task = asyncio.get_running_loop().create_task(
            self._run(batch, is_probe), context=contextvars.Context()
        )
        self._calls[task] = tokens
        admission = self._admission[lane]
        needed = len(groups)

        def on_group_done(_: object) -> None:
            nonlocal needed
            needed -= 1
            if not needed:
                task.cancel()  # no effect if the call has answered

        def on_done(task: asyncio.Task[None]) -> None:
            del self._calls[task]
            admission.complete(tokens)
            if is_probe and task.cancelled():
                self._gate.end_probe()
            if (failure := self._gate.failure) is not None and not self._gate.may_start:
                self._fail_queued(failure)
            self._dispatch_soon()

        for group in groups:
            group.future.add_done_callback(on_group_done)
        task.add_done_callback(on_done)
        if admission.has_backlog:
            self._queue(admission.next_part(self.settings.max_queued_tokens))

    async def _run(self, batch: Sequence[ProviderText], is_probe: bool) -> None:
        try:
            await self._caller.run(batch, is_probe=is_probe)
        except asyncio.CancelledError:
            fail_groups(batch, Unavailable(_SHUTTING_DOWN))  # unless nobody waits for them
            raise
        except Exception:
            logger.exception("Texts for the provider of %s failed", self._spec.name)
            fail_groups(batch, InferenceError("The call of the provider failed. This is a bug."))

    def _fail_queued(self, error: EmbedServeError) -> None:
        backlog = (admission.drain() for admission in self._admission.values())
        fail_groups([*self._queues.drain(), *itertools.chain.from_iterable(backlog)], error)


def _runs(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yields the texts in runs of about `_COUNTED_CHARS`."""
    run, characters = list[str](), 0
    for text in texts:
        run.append(text)
        characters += len(text)
        if characters > _COUNTED_CHARS:
            yield run
            run, characters = [], 0
    if run:
        yield run
