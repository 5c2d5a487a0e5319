"""The engines of a process with what they share: threads, a scheduler, memory.

groups of texts → tokenizer → scheduler → engine → outputs as cache values
"""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

from serve_app.config import EmbedderSettings
from serve_app.engines.affinity import describe_placement, move_threads, pin_thread
from serve_app.engines.base import Engine
from serve_app.engines.tokenizer_service import TokenizerService
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.inputs import Input, TextPair
from serve_app.meter import Gauges, Meter
from serve_app.metrics import MODEL_LOADED, QUEUED_TOKENS, STARTUP_SECONDS
from serve_app.scheduler.canaries import Canaries, CanarySchedule
from serve_app.scheduler.canary import Canary
from serve_app.scheduler.delivery import Encode, deliver_outputs
from serve_app.scheduler.loaded_models import LoadedModel, LoadedModels
from serve_app.scheduler.model_speeds import ModelSpeeds
from serve_app.scheduler.pending import PendingGroup
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.scheduler.scheduler import Scheduler
from serve_app.scheduler.speed_checkpoints import SpeedCheckpoints
from serve_app.scheduler.speed_file import SpeedFile
from serve_app.scheduler.startup_timer import StartupTimer
from serve_app.tasks import Task
from serve_app.types import (
    CacheLoss,
    EncodedVectors,
    EngineInfo,
    Outputs,
    TextGroup,
    Tokenization,
)

#: Concurrent batches on a GPU. On CPUs there is one for each thread.
_GPU_STREAMS = 2
_WARM_UP_TEXT = "The first run pays for lazy initialization."
#: The first task that an engine supports is run once, with this input.
_WARM_UP_INPUTS: Mapping[Task, Input] = {
    "embed": _WARM_UP_TEXT,
    "embed_sparse": _WARM_UP_TEXT,
    "embed_tokens": _WARM_UP_TEXT,
    "rerank": TextPair(_WARM_UP_TEXT, _WARM_UP_TEXT),
    "classify": _WARM_UP_TEXT,
}

#: Queues groups for their engines; see `Scheduler.submit`.
Submit = Callable[[Sequence[PendingGroup]], Awaitable[None]]


class PooledModel(NamedTuple):
    """A model that a pool loads and runs."""

    name: str  #: in metrics
    load: Callable[[], Engine]
    encoders: Mapping[Task, Encode]  #: for each task, returns outputs as cache values
    rejected: tuple[str, ...] = ()  #: engines that were rejected in favor of this one, with reasons
    #: Measures what the encoders lose, once in a process; None: nothing.
    measure_loss: Callable[[Engine], CacheLoss] | None = None
    canary: CanarySchedule | None = None  #: None: vectors aren't measured
    keeps_speed: bool = False  #: whether the next replica knows the speed that this one measured


class EnginePool:
    """Computes the outputs of models. Doesn't cache. Belongs to one event loop."""

    def __init__(
        self,
        models: Mapping[str, PooledModel],
        *,
        threads: int,
        cpus: Set[int],
        meter: Meter,
        max_loaded: int | None = None,
        startup: StartupTimer | None = None,
    ) -> None:
        """Loads the engines and warms them up.

        Args:
            models: the models by their `engine_id`; may be empty.
            threads: CPU threads for the models.
            cpus: the CPUs that these threads may use.
            meter: counts batches.
            max_loaded: number of models in memory; see `LoadedModels`.
            startup: measures the start of the replica; None: from here.
        """
        self._startup = startup or StartupTimer()
        # Each thread pins itself when it starts, and torch's own threads inherit the affinity. The
        # event loop isn't pinned, so that it runs on any idle CPU.
        self._cpus = cpus
        engine_threads = ThreadPoolExecutor(max(_GPU_STREAMS, threads), "engine", self._pin_thread)
        self._tokenizer_thread = ThreadPoolExecutor(1, "tokenizer", self._pin_thread)
        self._models = models
        self._losses: dict[str, CacheLoss] = {}
        self._canaries = Canaries(
            {id_: self._canary(id_, model.canary) for id_, model in models.items() if model.canary}
        )
        self._speeds, self._checkpoints = ModelSpeeds(), SpeedCheckpoints()
        self._loaded = LoadedModels(
            {id_: partial(self._load_and_warm_up, id_) for id_ in models},
            # Models that are loaded later must not wait for batches.
            engine_threads
            if max_loaded is None
            else ThreadPoolExecutor(1, "loader", self._pin_thread),
            max_loaded=max_loaded,
        )
        if self._loaded.engines:
            self._startup.ready()
        self._scheduler = Scheduler(
            EmbedderSettings(),
            streams=max((engine.streams for engine in self._loaded.engines), default=1),
            engine_threads=engine_threads,
            tokenizer_thread=self._tokenizer_thread,
            meter=meter,
            speeds=self._speeds,
        )
        self.submit: Submit = self._scheduler.submit

    @property
    def engine_ids(self) -> Set[str]:
        """The ids of the models' engines."""
        return self._models.keys()

    def model(self, engine_id: str) -> "PooledEngine":
        """Returns the calls of one model."""
        return PooledEngine(self, engine_id)

    def sample(self) -> PoolSample:
        """Returns the state of the queues and the engines."""
        return self._scheduler.sample()

    def gauges(self) -> Gauges:
        """Returns the current value of each gauge."""
        loaded = {
            (model.name,): float(self._loaded.find(engine_id) is not None)
            for engine_id, model in self._models.items()
        }
        return {
            **self._scheduler.gauges(),
            **self._canaries.gauges(),
            MODEL_LOADED: loaded,
            STARTUP_SECONDS: {(step,): seconds for step, seconds in self._startup.steps.items()},
        }

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
        self._canaries.start()
        self._checkpoints.start()

    async def stop(self) -> None:
        """Stops the workers and fails queued and later groups with `Unavailable`."""
        self._canaries.stop()
        await self._scheduler.stop()
        await self._checkpoints.stop()

    async def run(
        self,
        engine_id: str,
        groups: Sequence[TextGroup],
        deliver: Callable[[int, EncodedVectors | Exception], None],
    ) -> None:
        """Computes groups, and delivers the index and the outputs or the error of each.

        Cancelling it removes the groups from the queue.
        """
        try:
            loaded, load_s = await self._hold(engine_id)
        except EmbedServeError as error:
            for i in range(len(groups)):
                deliver(i, error)
            return
        try:
            await self._compute(engine_id, loaded.engine, groups, deliver, load_s)
        finally:
            self._loaded.release(loaded)

    async def _hold(self, engine_id: str) -> tuple[LoadedModel, float]:
        loaded = self._loaded.hold(engine_id)
        return (loaded, 0.0) if loaded is not None else await self._loaded.load(engine_id)

    async def _compute(
        self,
        engine_id: str,
        engine: Engine,
        groups: Sequence[TextGroup],
        deliver: Callable[[int, EncodedVectors | Exception], None],
        load_s: float,
    ) -> None:
        model = self._models[engine_id]
        pending = [PendingGroup(group, engine, model.name) for group in groups]
        await deliver_outputs(
            pending, model.encoders, lambda: self.submit(pending), deliver, load_s=load_s
        )

    def _canary(self, engine_id: str, schedule: CanarySchedule) -> Canary:
        embed = partial(self._embed_canary, engine_id)
        return Canary(self._models[engine_id].name, *schedule, embed, self._is_busy)

    async def _embed_canary(
        self, engine_id: str, group: TextGroup
    ) -> Outputs | EmbedServeError | None:
        loaded = self._loaded.hold(engine_id)
        if loaded is None:
            return None
        try:
            pending = PendingGroup(group, loaded.engine, self._models[engine_id].name)
            await self.submit([pending])
            return await pending.future
        finally:
            self._loaded.release(loaded)

    def _is_busy(self) -> bool:
        queued = self._scheduler.gauges()[QUEUED_TOKENS]
        return isinstance(queued, Mapping) and any(queued.values())

    async def tokenize(
        self, engine_id: str, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        """Returns the tokens of each text; see `TokenizerService.tokenize`."""
        loaded, _ = await self._hold(engine_id)
        try:
            service = TokenizerService(loaded.engine.tokenizer, self._tokenizer_thread)
            return await service.tokenize(texts, add_special_tokens=add_special_tokens)
        finally:
            self._loaded.release(loaded)

    async def decode(
        self, engine_id: str, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        """Returns the text of each row of token ids; see `TokenizerService.decode`."""
        loaded, _ = await self._hold(engine_id)
        try:
            service = TokenizerService(loaded.engine.tokenizer, self._tokenizer_thread)
            return await service.decode(rows, skip_special_tokens=skip_special_tokens)
        finally:
            self._loaded.release(loaded)

    def _load_and_warm_up(self, engine_id: str) -> Engine:
        model = self._models[engine_id]
        with self._startup.step("load"):
            engine = model.load()
        task = next(task for task in _WARM_UP_INPUTS if task in engine.tasks)
        with self._startup.step("warm_up"):
            engine.run(task, engine.tokenizer.encode([_WARM_UP_INPUTS[task]]))
        if model.measure_loss is not None and engine_id not in self._losses:
            self._losses[engine_id] = model.measure_loss(engine)
        if model.keeps_speed:
            speed = self._speeds.model(model.name, engine.streams)
            self._checkpoints.add(model.name, speed, SpeedFile(engine.info))
        return engine

    def describe(self, engine_id: str) -> EngineInfo:
        """Returns the engine, its device and its precision.

        Raises:
            Unavailable: the model isn't in memory.
        """
        engine = self._loaded.find(engine_id)
        if engine is None:
            raise Unavailable("The model isn't loaded at the moment.")
        return dataclasses.replace(
            engine.info,
            rejected=self._models[engine_id].rejected,
            cache_loss=self._losses.get(engine_id),
            drift=self._canaries.drift(engine_id),
            placement=describe_placement(self._cpus),
            startup=self._startup.steps,
        )

    def check_health(self) -> None:
        """Checks that the engines make progress.

        Raises:
            InferenceError: see `Scheduler.check_health`.
        """
        self._scheduler.check_health()

    def sample_load(self) -> ReplicaLoad:
        """Returns the load; rates are over the time since the previous call."""
        return dataclasses.replace(self._scheduler.sample_load(), startup_s=self._startup.total_s)

    def capacity_tokens_per_s(self) -> float:
        """Returns the speed of all models together in full batches; 0: unknown."""
        return self._speeds.capacity_tokens_per_s(self._scheduler.settings)


class ModelPool(Protocol):
    """Several models, by their `engine_id`."""

    @property
    def engine_ids(self) -> Set[str]:
        """The ids of the models' engines."""
        ...

    async def run(
        self,
        engine_id: str,
        groups: Sequence[TextGroup],
        deliver: Callable[[int, EncodedVectors | Exception], None],
    ) -> None:
        """Computes groups, and delivers the index and the outputs or the error of each."""
        ...

    async def tokenize(
        self, engine_id: str, texts: tuple[str, ...], add_special_tokens: bool
    ) -> list[Tokenization]:
        """Returns the tokens of each text."""
        ...

    async def decode(
        self, engine_id: str, rows: tuple[tuple[int, ...], ...], skip_special_tokens: bool
    ) -> list[str]:
        """Returns the text of each row of token ids."""
        ...

    def describe(self, engine_id: str) -> EngineInfo:
        """Returns what runs the model."""
        ...

    def sample(self) -> PoolSample:
        """Returns the state of the queues and the engines."""
        ...


class PooledEngine:
    """The calls of one model of a pool."""

    def __init__(self, pool: ModelPool, engine_id: str) -> None:
        self.run = partial(pool.run, engine_id)
        self.tokenize = partial(pool.tokenize, engine_id)
        self.decode = partial(pool.decode, engine_id)
        self._describe = partial(pool.describe, engine_id)

    async def describe(self) -> EngineInfo:
        """Returns the engine; see `EnginePool.describe`."""
        return self._describe()
