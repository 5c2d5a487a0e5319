"""An engine with what it needs to run in a process: threads, a scheduler and its tokenizer.

groups of texts → tokenizer → scheduler → engine → vectors
"""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from serve_app.config import EmbedderSettings
from serve_app.engines.affinity import move_threads, pin_thread
from serve_app.engines.base import Engine
from serve_app.engines.tokenizer_service import TokenizerService
from serve_app.errors import EmbedServeError, InferenceError
from serve_app.metrics import Gauges, Meter
from serve_app.scheduler.load import LoadSample
from serve_app.scheduler.pending import PendingGroup, PendingTokenVectors, PendingVectors
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import (
    EncodedVectors,
    EngineInfo,
    TextGroup,
    Tokenization,
    TokenVectors,
    Vectors,
)

logger = logging.getLogger(__name__)

#: Concurrent batches on a GPU. On CPUs there is one for each thread.
_GPU_STREAMS = 2

#: Queues groups for the engine; see `Scheduler.submit`.
Submit = Callable[[Sequence[PendingGroup[Any]]], Awaitable[None]]
Encode = Callable[[Vectors], EncodedVectors]


class AsyncEngine:
    """Computes vectors with one engine. Doesn't cache. Belongs to one event loop."""

    def __init__(
        self,
        load: Callable[[], Engine],
        encode: Encode,
        *,
        threads: int,
        cpus: Set[int],
        meter: Meter,
        rejected: tuple[str, ...] = (),
    ) -> None:
        """Loads the engine and warms it up.

        Args:
            load: returns the engine.
            encode: returns vectors as cache values.
            threads: CPU threads for the model.
            cpus: the CPUs that these threads may use.
            meter: counts batches.
            rejected: engines that were rejected in favor of this one, with reasons.
        """
        self._encode = encode
        # Each thread pins itself when it starts, and torch's own threads inherit the affinity. The
        # event loop isn't pinned, so that it runs on any idle CPU.
        self._cpus = cpus
        engine_threads = ThreadPoolExecutor(max(_GPU_STREAMS, threads), "engine", self._pin_thread)
        tokenizer_thread = ThreadPoolExecutor(1, "tokenizer", self._pin_thread)

        def load_and_warm_up() -> Engine:
            engine = load()
            engine.embed(engine.tokenizer.encode(["The first run pays for lazy initialization."]))
            return engine

        engine = engine_threads.submit(load_and_warm_up).result()
        self._info = dataclasses.replace(engine.info, rejected=rejected)
        self._scheduler = Scheduler(
            engine,
            EmbedderSettings(),
            engine_threads=engine_threads,
            tokenizer_thread=tokenizer_thread,
            meter=meter,
        )
        self._tokenizer_service = TokenizerService(engine.tokenizer, tokenizer_thread)
        self.submit: Submit = self._scheduler.submit

    def gauges(self) -> Gauges:
        """Returns the current value of each gauge."""
        return self._scheduler.gauges()

    def apply(self, settings: EmbedderSettings, cpus: Set[int]) -> None:
        """Applies settings from the next batch on, and moves the threads to other CPUs."""
        self._scheduler.settings = settings
        if cpus != self._cpus:
            previous, self._cpus = self._cpus, cpus  # first, for threads that start meanwhile
            move_threads(previous, cpus)

    def _pin_thread(self) -> None:
        pin_thread(self._cpus)

    def start(self) -> None:
        """Starts the workers. Idempotent; call it in the event loop."""
        self._scheduler.start()

    async def stop(self) -> None:
        """Stops the workers and fails queued and later groups with `Unavailable`."""
        await self._scheduler.stop()

    async def embed(
        self,
        groups: Sequence[TextGroup],
        deliver: Callable[[int, EncodedVectors | Exception], None],
    ) -> None:
        """Computes groups, and delivers the index and the vectors or the error of each.

        Cancelling it removes the groups from the queue.
        """
        pending = [PendingVectors(group) for group in groups]
        all_delivered = asyncio.get_running_loop().create_future()
        undelivered = len(pending)

        def on_done(index: int, future: asyncio.Future[Vectors | EmbedServeError]) -> None:
            nonlocal undelivered
            if future.cancelled():
                return
            deliver(index, self._encoded(future.result()))
            undelivered -= 1
            if not undelivered and not all_delivered.done():
                all_delivered.set_result(None)

        for i, group in enumerate(pending):
            group.future.add_done_callback(partial(on_done, i))
        try:
            await self.submit(pending)
            await all_delivered
        finally:
            for group in pending:
                group.future.cancel()  # no effect unless the caller was cancelled

    def _encoded(self, result: Vectors | EmbedServeError) -> EncodedVectors | EmbedServeError:
        if not isinstance(result, Vectors):
            return result
        try:
            return self._encode(result)
        except Exception:
            logger.exception("The vectors of %d texts can't be encoded", len(result.values))
            return InferenceError("The vectors of the model can't be encoded.")

    async def embed_tokens(self, group: TextGroup) -> list[TokenVectors]:
        """Returns for each text the vectors of its tokens.

        Raises:
            EmbedServeError: see `PendingGroup`.
        """
        pending = PendingTokenVectors(group)
        try:
            await self._scheduler.submit([pending])
            result = await pending.future
        finally:
            pending.future.cancel()
        if isinstance(result, EmbedServeError):
            raise result
        return result

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        """Returns the tokens of each text; see `TokenizerService.tokenize`."""
        return await self._tokenizer_service.tokenize(texts, add_special_tokens=add_special_tokens)

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        """Returns the text of each row of token ids; see `TokenizerService.decode`."""
        return await self._tokenizer_service.decode(rows, skip_special_tokens=skip_special_tokens)

    async def describe(self) -> EngineInfo:
        """Returns the engine, its device and its precision."""
        return self._info

    def check_health(self) -> None:
        """Checks that the engine makes progress.

        Raises:
            InferenceError: see `Scheduler.check_health`.
        """
        self._scheduler.check_health()

    def sample_load(self) -> LoadSample:
        """Returns the load since the previous call."""
        return self._scheduler.load.sample()
