"""The model deployment: groups of texts → tokenizer → scheduler → engine → vectors.

Each replica runs one engine on CPUs or a GPU of its own.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ReplicaRank

from serve_app.config import EmbedderSettings
from serve_app.engines.affinity import available_cpus, choose_cpus, move_threads, pin_thread
from serve_app.engines.base import Engine
from serve_app.engines.tokenizer_service import TokenizerService
from serve_app.errors import ConfigurationError, EmbedServeError, SpaceMismatch
from serve_app.metrics import export
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.models import resolve
from serve_app.scheduler.pending import PendingTokenVectors, PendingVectors
from serve_app.scheduler.scheduler import Scheduler
from serve_app.types import EngineInfo, TextGroup, Tokenization, TokenVectors, Vectors

#: Upper bound of calls that share one run of the tokenizer.
_MAX_COLLECTED_CALLS = 256
#: Calls with more characters are tokenized by themselves, so that others don't wait for them.
_MAX_COLLECTED_CHARS = 16384
#: Concurrent batches on a GPU. On CPUs there is one for each thread.
_GPU_STREAMS = 2


class Embedder:
    """Computes vectors with one engine. Doesn't cache."""

    def __init__(
        self, selection: EngineSelection, *, load: Callable[..., Engine] = load_engine
    ) -> None:
        """Loads the engine and warms it up.

        Args:
            selection: the engine and the model that the application was built with.
            load: returns the engine for `selection` and `threads`.

        Raises:
            ConfigurationError: the engine can't run on the device that Ray assigned.
            SpaceMismatch: the model files of this node differ from those of the application.
        """
        config, spec = selection.config, selection.spec
        _check_device(config.device, has_gpu=bool(ray.get_gpu_ids()))
        local = resolve(config.model, config.precision)
        if local.space_id != spec.space_id:
            raise SpaceMismatch(
                f"The model files on this node produce vectors of space {local.space_id}, but the "
                f"application was built for space {spec.space_id}. Install the same model on every "
                "node."
            )
        self._threads = max(1, int(_assigned_resources().get("CPU", 1)))
        self._all_cpus = available_cpus()
        self._cpus = self._select_cpus(serve.get_replica_context().rank.local_rank)
        # Each thread pins itself when it starts, and torch's own threads inherit the affinity. The
        # event loop isn't pinned, so that it runs on any idle CPU.
        streams = max(_GPU_STREAMS, self._threads)
        engine_threads = ThreadPoolExecutor(streams, "engine", pin_thread, (self._cpus,))
        tokenizer_thread = ThreadPoolExecutor(1, "tokenizer", pin_thread, (self._cpus,))

        def load_and_warm_up() -> Engine:
            engine = load(selection, threads=self._threads)
            engine.embed(engine.tokenizer.encode(["The first run pays for lazy initialization."]))
            return engine

        engine = engine_threads.submit(load_and_warm_up).result()
        self._info = dataclasses.replace(engine.info, rejected=selection.rejected)
        self._scheduler = Scheduler(
            engine,
            EmbedderSettings(),
            engine_threads=engine_threads,
            tokenizer_thread=tokenizer_thread,
        )
        self._tokenizer_service = TokenizerService(engine.tokenizer, tokenizer_thread)
        self._export_task: asyncio.Task[None] | None = None

    def _select_cpus(self, local_rank: int) -> frozenset[int]:
        return choose_cpus(self._all_cpus, self._threads, local_rank)

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings, and moves the threads to other CPUs if the local rank has changed.

        Ray calls it before the first request, after each change of the settings, and when it
        reassigns ranks.
        """
        settings = EmbedderSettings.parse(user_config)
        self._start()
        self._scheduler.settings = settings
        cpus = self._select_cpus(rank.local_rank)
        if cpus != self._cpus:
            move_threads(self._cpus, cpus)
            self._cpus = cpus

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            scheduler = self._scheduler
            scheduler.start()
            self._export_task = asyncio.create_task(export(scheduler.meter, scheduler.gauges))

    async def embed(self, groups: tuple[TextGroup, ...]) -> list[Vectors | EmbedServeError]:
        """Returns for each group its vectors, or an error as a value."""
        pending = [PendingVectors(group) for group in groups]
        try:
            characters = sum(len(text) for group in groups for text in group.texts)
            if characters > _MAX_COLLECTED_CHARS:
                await self._scheduler.submit(pending)
            else:
                await self._submit(pending)
            return [await group.future for group in pending]
        finally:
            for group in pending:
                group.future.cancel()  # no effect unless the caller was cancelled

    async def embed_tokens(self, group: TextGroup) -> list[TokenVectors] | EmbedServeError:
        """Returns for each text the vectors of its tokens, or one error as a value."""
        pending = PendingTokenVectors(group)
        try:
            await self._scheduler.submit([pending])
            return await pending.future
        finally:
            pending.future.cancel()

    @serve.batch(
        max_batch_size=_MAX_COLLECTED_CALLS, batch_wait_timeout_s=0, max_concurrent_batches=64
    )
    async def _submit(self, calls: list[list[PendingVectors]]) -> list[None]:
        # Simultaneous calls share one run of the tokenizer. This returns once their groups are
        # queued, so that a short request never waits for the vectors of a long one.
        await self._scheduler.submit(list(chain.from_iterable(calls)))
        return [None] * len(calls)

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization] | EmbedServeError:
        """Returns the tokens of each text, not truncated."""
        return await self._tokenizer_service.tokenize(texts, add_special_tokens=add_special_tokens)

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str] | EmbedServeError:
        """Returns the text of each row of token ids."""
        return await self._tokenizer_service.decode(rows, skip_special_tokens=skip_special_tokens)

    async def describe(self) -> EngineInfo:
        """Returns the engine, its device and its precision."""
        return self._info

    async def check_health(self) -> None:
        """Raises if the engine stalls; Ray then replaces the replica."""
        self._scheduler.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that `autoscale.TokenPolicy` scales by."""
        return dataclasses.asdict(self._scheduler.load.sample())


def _check_device(device: str, *, has_gpu: bool) -> None:
    """Checks that Ray assigned the configured device to this replica.

    Raises:
        ConfigurationError: a GPU is configured but not assigned, or assigned but not used.
    """
    if device == "cuda" and not has_gpu:
        raise ConfigurationError(
            "`device: cuda` needs a GPU: set `num_gpus` in the Embedder's `ray_actor_options`."
        )
    if device == "cpu" and has_gpu:
        raise ConfigurationError(
            "Ray assigned a GPU to this replica, but `device: cpu` doesn't use it: set `device: "
            "cuda` in the application's `args`, or remove `num_gpus` from the Embedder."
        )


def _assigned_resources() -> dict[str, float]:
    context = ray.get_runtime_context()
    resources: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return resources
