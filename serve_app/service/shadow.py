"""Embeds some texts of an alias with a second model too: answered texts → queue → comparison.

Nothing here delays an answer or fails it: texts that don't fit into the queue, and those that the
second model doesn't embed in time, are dropped and counted.
"""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextvars import Context
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

from serve_app.config import ShadowSettings
from serve_app.cost import token_cost
from serve_app.errors import DeadlineExceeded, EmbedServeError, Overloaded
from serve_app.jobs import BatchJob, EmbedJob, Job
from serve_app.live.shadow_sample import Agreement, ModelUsage, ShadowSample
from serve_app.metrics import (
    SHADOW_COSINE,
    SHADOW_NANO_USD,
    SHADOW_NEIGHBOR_AGREEMENT,
    SHADOW_RANK_CORRELATION,
    SHADOW_SAMPLE_TEXTS,
    SHADOW_SECONDS,
    SHADOW_TEXTS,
    SHADOW_TOKENS,
    Metric,
)
from serve_app.models import ModelSpec
from serve_app.results import BatchResult, EmbedResult, Result
from serve_app.service.embed import EmbedService
from serve_app.service.vector_pairs import VectorPairs, compare
from serve_app.types import Float32, sum_computed

logger = logging.getLogger(__name__)

_MAX_QUEUED_TEXTS = 1024
_MAX_QUEUED_CHARS = 1 << 22
_GROUP_TEXTS = 32
_MAX_PAUSE_S = 30.0
_CRC_RANGE = 1 << 32


class _QueuedText(NamedTuple):
    """A text that the first model has embedded."""

    key: bytes
    text: str
    input_type: str | None
    vector: Float32
    tokens: int


class Shadow:
    """The second model of an alias, whose vectors are never answered. For one event loop.

    A task embeds one group of texts at a time, in the lane `bulk`, and ends when the queue is
    empty. After a failure it pauses, at first for a second.
    """

    def __init__(
        self,
        alias: str,
        primary: EmbedService,
        second: EmbedService,
        settings: ShadowSettings,
        *,
        compare_every_s: float = 5.0,
    ) -> None:
        """Creates a shadow that has compared nothing.

        Args:
            alias: its name.
            primary: the model that answers.
            second: the model that is compared with it.
            settings: which texts, and how many.
            compare_every_s: time between two comparisons of the sample, which take a few
                hundredths of a second of a core.
        """
        self.alias = alias
        self.primary = primary
        self.second = second
        self.settings = settings
        self._compare_every_s = compare_every_s
        self._meter = second.meter.process
        self._threshold = round(settings.share * _CRC_RANGE)
        self._queue = deque[_QueuedText]()
        self._queued_chars = 0
        self._waiting = set[bytes]()  #: keys of the texts in the queue or in progress
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pairs = VectorPairs(settings.sample_texts)
        self._agreement: Agreement | None = None
        self._is_compared = True
        self._compared_s: float | None = None
        self._pause_s = 0.0
        self._outcomes = Counter[str]()
        self._usage = {spec.name: ModelUsage() for spec in (primary.spec, second.spec)}

    def offer(self, job: Job[Result], result: Result) -> None:
        """Queues a share of the texts that the first model has embedded for a job.

        Texts that the second model would treat in another way are left out: token ids, images,
        texts in chunks or cut to a length; so are those that are not to be stored.
        """
        if isinstance(job, BatchJob) and isinstance(result, BatchResult):
            for part_job, part in zip(job.jobs, result, strict=True):
                self._offer(part_job, part)
        else:
            self._offer(job, result)

    def _offer(self, job: object, result: object) -> None:
        if not (isinstance(job, EmbedJob) and isinstance(result, EmbedResult) and job.use_cache):
            return
        if job.truncation not in ("end", "error") or job.max_tokens is not None:
            return
        raw = result.vectors if result.raw is None else result.raw
        queued = False
        for i, text in enumerate(result.inputs):
            if isinstance(text, str) and crc32(text.encode()) < self._threshold:
                vector, tokens = raw[i], int(result.token_counts[i])
                queued |= self._add(text, job.input_type, vector, tokens)
        computed = sum_computed(result.token_counts, result.tiers)
        if queued and computed:
            self._count(self.primary.spec, ModelUsage(0, 0, computed, result.timings.infer_s))

    def _add(self, text: str, input_type: str | None, vector: Float32, tokens: int) -> bool:
        """Queues a text unless it is known; returns whether it did."""
        key = blake2b(f"{input_type}\0{text}".encode(), digest_size=16).digest()
        if key in self._pairs or key in self._waiting:
            return False
        if (
            len(self._queue) >= _MAX_QUEUED_TEXTS
            or self._queued_chars + len(text) > _MAX_QUEUED_CHARS
        ):
            self._count_texts("full", 1)
            return False
        # A copy, because a row would keep the vectors of the whole request in memory.
        self._queue.append(_QueuedText(key, text, input_type, vector.copy(), tokens))
        self._queued_chars += len(text)
        self._waiting.add(key)
        self._arrived.set()
        if self._task is None:
            # In a context of its own: the request that starts it may be cancelled, or traced.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._work(), context=Context())
        return True

    async def _work(self) -> None:
        try:
            await self._work_off()
        except Exception:
            logger.exception("The comparison with %s failed.", self.second.spec.name)
        finally:
            self._task = None

    async def _work_off(self) -> None:
        """Embeds what is queued, and compares, until nothing is left to do."""
        loop = asyncio.get_running_loop()
        if self._compared_s is None:  # so that the first comparison is due
            self._compared_s = loop.time() - self._compare_every_s
        while True:
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            if self._queue:
                await self._embed(self._take())
            due_s = self._compared_s + self._compare_every_s - loop.time()
            # With the last text of the queue, or without it once the time has passed twice.
            is_due = due_s <= (-self._compare_every_s if self._queue else 0)
            if not self._is_compared and is_due:
                self._compared_s = loop.time()
                await self._compare()
            if self._queue:
                continue
            if self._is_compared:
                break
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due_s)):
                    await self._arrived.wait()

    def _take(self) -> Sequence[_QueuedText]:
        """Returns the oldest queued texts of one input type."""
        limit = min(_GROUP_TEXTS, self.second.settings.max_texts_per_request)
        input_type = self._queue[0].input_type
        group = list[_QueuedText]()
        while self._queue and len(group) < limit and self._queue[0].input_type == input_type:
            group.append(self._queue.popleft())
        self._queued_chars -= sum(len(item.text) for item in group)
        return group

    async def _embed(self, group: Sequence[_QueuedText]) -> None:
        input_type = group[0].input_type
        known = self.second.spec.prompts
        job = EmbedJob(
            tuple(item.text for item in group),
            # A model without this prompt embeds such a text like any other.
            input_type if input_type in known else None,
            lane="bulk",
        )
        try:
            result = await self.second.run(job, self.settings.timeout_s)
        except EmbedServeError as error:
            self._fail(group, error)
        except Exception:
            logger.exception("The shadow %s failed in an unexpected way.", self.second.spec.name)
            self._fail(group, None)
        else:
            self._pause_s = 0.0
            self._receive(group, result)
        finally:
            self._waiting -= {item.key for item in group}

    def _fail(self, group: Sequence[_QueuedText], error: EmbedServeError | None) -> None:
        outcome = "failed"
        if isinstance(error, DeadlineExceeded):
            outcome = "timeout"
        elif isinstance(error, Overloaded):
            outcome = "overloaded"
        if not self._pause_s and error is not None:
            name = self.second.spec.name
            logger.warning("The shadow %s doesn't embed at the moment: %s.", name, error.code)
        self._pause_s = min(max(1.0, 2 * self._pause_s), _MAX_PAUSE_S)
        self._count_texts(outcome, len(group))

    def _receive(self, group: Sequence[_QueuedText], result: EmbedResult) -> None:
        for item, vector in zip(group, result.vectors, strict=True):
            self._pairs.add(item.key, item.vector, vector.copy())
        self._is_compared = False
        computed = sum_computed(result.token_counts, result.tiers)
        seconds = result.timings.infer_s if computed else 0.0
        tokens = sum(item.tokens for item in group)
        self._count_texts("compared", len(group))
        self._count(self.primary.spec, ModelUsage(len(group), tokens))
        usage = ModelUsage(len(group), result.total_tokens, computed, seconds)
        self._count(self.second.spec, usage)

    async def _compare(self) -> None:
        pairs = self._pairs.snapshot()
        self._is_compared = True
        if pairs is not None:
            cosine = self.settings.cosine
            self._agreement = await asyncio.to_thread(compare, *pairs, cosine=cosine)

    def _count_texts(self, outcome: str, count: int) -> None:
        self._outcomes[outcome] += count
        self._meter.add(SHADOW_TEXTS, count, outcome, self.alias, self.second.spec.name)

    def _count(self, spec: ModelSpec, usage: ModelUsage) -> None:
        self._usage[spec.name] = self._usage[spec.name].plus(usage)
        tags = (self.alias, spec.name)
        self._meter.add(SHADOW_TOKENS, usage.computed_tokens, *tags)
        self._meter.add(SHADOW_SECONDS, usage.computed_s, *tags)
        if spec.nano_usd_per_1k_tokens:
            nano_usd = token_cost(usage.tokens, spec.nano_usd_per_1k_tokens)
            self._meter.add(SHADOW_NANO_USD, nano_usd, *tags)

    def sample(self) -> ShadowSample:
        """Returns what is known so far."""
        first, second = self.primary.spec.name, self.second.spec.name
        return ShadowSample(
            self.alias,
            first,
            second,
            dict(self._outcomes),
            self._usage[first],
            self._usage[second],
            self._agreement,
        )

    def gauges(self) -> Mapping[Metric, Mapping[Any, float]]:
        """Returns the latest comparison; nothing before the first one."""
        found, tags = self._agreement, (self.alias, self.second.spec.name)
        if found is None:
            return {}
        gauges: dict[Metric, Mapping[Any, float]] = {
            SHADOW_SAMPLE_TEXTS: {tags: found.texts},
            SHADOW_NEIGHBOR_AGREEMENT: {
                ("10", *tags): found.kept,
                ("1", *tags): found.kept_first,
            },
        }
        if found.rank_correlation is not None:
            gauges[SHADOW_RANK_CORRELATION] = {tags: found.rank_correlation}
        if found.cosine is not None:
            gauges[SHADOW_COSINE] = {tags: found.cosine}
        return gauges

    async def close(self) -> None:
        """Stops. What is queued is dropped."""
        self._queue.clear()
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.wait({task})
