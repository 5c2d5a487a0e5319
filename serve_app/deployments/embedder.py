"""The deployment that runs the model: one replica, one engine, its own CPUs or its own GPU."""

import asyncio
import dataclasses
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

#: Calls that one run of the collector may gather; it waits for none.
_COLLECT = 256
#: Batches that an engine on a GPU has under way; one on CPUs has one for each thread.
_GPU_STREAMS = 2


class Embedder:
    """Computes vectors of texts, prompts already in front."""

    def __init__(self, choice: EngineSelection) -> None:
        config, spec = choice.config, choice.spec
        _check_device(config.device, given=bool(ray.get_gpu_ids()))
        local = resolve(config.model, config.precision)
        if local.space_id != spec.space_id:
            raise SpaceMismatch(
                f"This replica's files give space {local.space_id}, the application promises "
                f"{spec.space_id}: the model on this node differs from the one the application was "
                "built with."
            )
        self._threads = max(1, int(_resources().get("CPU", 1)))
        self._all_cpus = available_cpus()
        self._cpus = self._my_cpus(serve.get_replica_context().rank.local_rank)
        # Each thread pins itself as it starts, and what torch starts from it inherits that. The
        # event loop stays free to run wherever there is room.
        streams = max(_GPU_STREAMS, self._threads)
        engine_threads = ThreadPoolExecutor(streams, "engine", pin_thread, (self._cpus,))
        tokenizer_thread = ThreadPoolExecutor(1, "tokenizer", pin_thread, (self._cpus,))
        engine = engine_threads.submit(self._load, choice).result()
        self._info = dataclasses.replace(engine.info, refused=choice.refused)
        self._scheduler = Scheduler(
            engine,
            EmbedderSettings(),
            engine_threads=engine_threads,
            tokenizer_thread=tokenizer_thread,
        )
        self._tokenizer_service = TokenizerService(engine.tokenizer, tokenizer_thread)
        self._exporting: asyncio.Task[None] | None = None

    def _my_cpus(self, local_rank: int) -> frozenset[int]:
        return choose_cpus(self._all_cpus, self._threads, local_rank)

    def _load(self, choice: EngineSelection) -> Engine:
        engine = load_engine(choice, threads=self._threads)
        engine.embed(engine.tokenizer.encode(["The first run pays for lazy start-up."]))
        return engine

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Takes new settings and, when Ray numbers the replicas anew, other CPUs.

        Ray calls it before the first request and at each change.
        """
        settings = EmbedderSettings.parse(user_config)
        if self._exporting is None:
            scheduler = self._scheduler
            scheduler.start()
            self._exporting = asyncio.create_task(export(scheduler.meter, scheduler.gauges))
        self._scheduler.settings = settings
        cpus = self._my_cpus(rank.local_rank)
        if cpus != self._cpus:
            move_threads(self._cpus, cpus)
            self._cpus = cpus

    async def embed(self, groups: tuple[TextGroup, ...]) -> list[Vectors | EmbedServeError]:
        """For each group its vectors, or the error that stands for them."""
        submissions = [PendingVectors(group) for group in groups]
        try:
            await self._collect(submissions)
            return [await submission.future for submission in submissions]
        finally:
            for submission in submissions:
                submission.future.cancel()  # the caller left, wherever it was; an answer stays

    async def embed_tokens(self, group: TextGroup) -> list[TokenVectors] | EmbedServeError:
        """Of each text the vectors of its tokens, or the error that stands for all."""
        submission = PendingTokenVectors(group)
        try:
            await self._scheduler.submit([submission])
            return await submission.future
        finally:
            submission.future.cancel()

    @serve.batch(max_batch_size=_COLLECT, batch_wait_timeout_s=0, max_concurrent_batches=64)
    async def _collect(self, calls: list[list[PendingVectors]]) -> list[None]:
        # Collects what arrives together for one run of the tokenizer. It ends when all is in the
        # queue, not when all is computed: a short request never waits for a long one it came with.
        await self._scheduler.submit(list(chain.from_iterable(calls)))
        return [None] * len(calls)

    async def tokenize(
        self, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization] | EmbedServeError:
        """Returns the tokens of each text, not truncated."""
        return await self._tokenizer_service.tokenize(
            texts, add_special_tokens=add_special_tokens
        )

    async def decode(
        self, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str] | EmbedServeError:
        """The texts that rows of token ids stand for."""
        return await self._tokenizer_service.decode(
            rows, skip_special_tokens=skip_special_tokens
        )

    async def describe(self) -> EngineInfo:
        """What runs the model here."""
        return self._info

    async def check_health(self) -> None:
        """Ray replaces the replica when this raises."""
        self._scheduler.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscale.TokenPolicy` decides by."""
        return dataclasses.asdict(self._scheduler.load.read())


def _check_device(device: str, *, given: bool) -> None:
    """Refuses to start where the configured device isn't what Ray gave this replica.

    Raises:
        ConfigurationError: a GPU is asked for and not given, or given and would lie idle.
    """
    if device == "cuda" and not given:
        raise ConfigurationError(
            "`device: cuda` needs a GPU: set `num_gpus` in the Embedder's `ray_actor_options`."
        )
    if device == "cpu" and given:
        raise ConfigurationError(
            "Ray gave this replica a GPU that `device: cpu` would leave idle: set `device: cuda` "
            "in the application's `args`, or take `num_gpus` from the Embedder."
        )


def _resources() -> dict[str, float]:
    context = ray.get_runtime_context()
    resources: dict[str, float] = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    return resources
