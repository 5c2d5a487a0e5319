"""The service of one model, between the dialects and the cache.

job → validate → deduplicate → backend → restore the order → result

It depends on neither HTTP nor Ray: a `Backend` stands for the tiers below.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from serve_app import __version__
from serve_app.config import RequestSettings
from serve_app.cost import request_cost
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    Unavailable,
    UnsupportedOperation,
)
from serve_app.inputs import Input, TextPair
from serve_app.jobs import Job, ResultT
from serve_app.live.model_status import ModelStatus
from serve_app.live.snapshot import ModelState
from serve_app.meter import Meter, ModelMeter
from serve_app.models import ModelSpec
from serve_app.scheduler.canary import MAX_DRIFT
from serve_app.service.backend import Backend
from serve_app.service.health import HealthProbe, HealthReport
from serve_app.service.task_context import TaskContext
from serve_app.service.tasks import RUNNERS
from serve_app.tasks import Task
from serve_app.time_limit import limit_time
from serve_app.types import CacheState, EngineInfo, ReplicaCount, TextGroup

#: Returns the replicas of a deployment without waking it up; None: unknown.
CountReplicas = Callable[[], Awaitable[ReplicaCount | None]]

_PROBE = "health probe"
_PROBE_INPUTS: Mapping[Task, Input] = {"rerank": TextPair(_PROBE, _PROBE)}
_STATUS_TIMEOUT_S = 2.0
_DRIFT_MAX_AGE_S = 60.0
#: Until a replica has reported it.
_DEFAULT_STARTUP_S = 10


class EmbedService:
    """Computes the results of jobs, for one model."""

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        settings: RequestSettings,
        meter: ModelMeter | None = None,
        *,
        uncached_tasks: frozenset[Task] = frozenset(),
        probes: bool = True,
        count_replicas: CountReplicas | None = None,
    ) -> None:
        """Creates a service.

        Args:
            spec: the model.
            backend: the tiers below.
            settings: limits and timeouts; `apply` replaces them.
            meter: counts the requests of the model.
            uncached_tasks: see `TaskContext`.
            probes: whether health checks may run the model; see `HealthProbe`. If a provider runs
                it, they ask for the state of its circuit breaker instead.
            count_replicas: of the model's deployment; None: the engine is in this process.

        Raises:
            ConfigurationError: see `apply`.
        """
        self.spec = spec
        self._backend = backend
        self.meter = meter or Meter().for_model(spec.name)
        self._tasks = frozenset(spec.tasks)
        local_probe = self._run_model if probes else None
        self._probe = self._check_breaker if spec.is_remote else local_probe
        self._count_replicas = count_replicas
        self._device: str | None = None
        self._startup_s = _DEFAULT_STARTUP_S
        self._drift: float | None = None
        self._drift_expires_s = -math.inf
        self._context = TaskContext(
            spec, backend, settings, self.meter, uncached_tasks=uncached_tasks
        )
        self.apply(settings)

    def apply(self, settings: RequestSettings) -> None:
        """Applies new settings. Requests in progress keep the previous ones.

        Raises:
            ConfigurationError: the encoding of `token_ids` is not available.
        """
        self._context.apply(settings)
        self.settings = settings
        self._health = HealthProbe(
            self._probe,
            max_age_s=settings.health_max_age_s,
            timeout_s=settings.health_timeout_s,
            computes=not self.spec.is_remote,
        )

    async def run(self, job: Job[ResultT], timeout_s: float = math.inf) -> ResultT:
        """Runs a job.

        Args:
            job: the inputs, and what to compute for them.
            timeout_s: time limit of the caller, if it is lower than `request_timeout_s`.

        Returns:
            The result of the job's type, with its cost if the model has a price; see `results`.

        Raises:
            InvalidRequest: an input or an option is not valid.
            UnsupportedOperation: the model or its engine doesn't support the job.
            Overloaded: the queue has no room for the job.
            DeadlineExceeded: the outputs didn't arrive within the time limit.
            InferenceError, Unavailable: see `errors`.
        """
        if not job.tasks <= self._tasks:
            raise unsupported_task(self.spec, min(job.tasks - self._tasks))
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        context, price = self._context, self.spec.nano_usd_per_1k_tokens
        if price:
            context, computed = context.counted()
        try:
            result: Any = await limit_time(RUNNERS[type(job)](context, job, timeout_s), timeout_s)
        except TimeoutError:
            if await self.is_asleep():
                raise Unavailable(
                    f"{self.spec.name} had scaled to zero, and has not started within "
                    f"{timeout_s:g} s; try again.",
                    self._startup_s,
                ) from None
            raise _deadline_exceeded(timeout_s) from None
        if result.has_computed:
            self._health.record_success()
        if price:
            tokens = result.billed_tokens
            result = result.with_cost(request_cost(tokens, computed.count, computed.tokens, price))
        return result  # type: ignore[no-any-return]

    async def health(self) -> HealthReport:
        """Returns whether a replica can embed, and probes one if no recent work proves it.

        A model that may scale to zero isn't probed, since that would keep it awake: its deployment
        is healthy if Ray can start its replicas.
        """
        report = self._health.recent()
        if report is not None or self._count_replicas is None:
            return report or await self._health.check()
        count = await self._count_replicas()
        if count is None or not count.may_be_zero:
            return await self._health.check()
        healthy = count.running > 0 or count.failure is None
        return HealthReport(
            healthy,
            self._health.age_s,
            None if healthy else f"No replica starts: {count.failure}",
            is_proven=not healthy,
            is_asleep=count.is_asleep,
        )

    @property
    def unknown_status(self) -> ModelStatus:
        """The model, before anything is known of its state."""
        spec = self.spec
        return ModelStatus(spec.name, spec.main_task, bool(spec.nano_usd_per_1k_tokens))

    async def status(self) -> ModelStatus:
        """Returns the state of the model, and what runs it; probes it like `health`."""
        report, engine = await asyncio.gather(self.health(), self._describe_engine())
        state: ModelState = "ready" if report.healthy else "unavailable"
        return self.unknown_status._replace(
            state="asleep" if report.is_asleep else state,
            engine=None if engine is None else engine.engine,
            precision=None if engine is None else engine.precision,
        )

    async def is_asleep(self) -> bool:
        """Returns whether the model's deployment has scaled to zero; doesn't wake it up."""
        count = None if self._count_replicas is None else await self._count_replicas()
        return count is not None and count.is_asleep

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache. Never raises: the service works without it."""
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                return await self._backend.cache_state()
        except (TimeoutError, EmbedServeError):
            return CacheState("unknown", "CacheLookup doesn't answer.")

    async def info(self) -> dict[str, Any]:
        """Returns the model's part of `/info`.

        The engine's fields are None when no replica responds, as while the model is asleep.
        """
        engine = await self._describe_engine()
        is_asleep = engine is None and await self.is_asleep()
        return {
            "model": self.spec.name,
            "version": __version__,
            "aliases": list(self.spec.aliases),
            "kind": self.spec.kind,
            "tasks": list(self.spec.tasks),
            "dim": self.spec.dim,
            "max_tokens": self.spec.max_tokens,
            "input_types": sorted(self.spec.prompts),
            "space": self.spec.space_id,
            "weights_sha256": self.spec.weights_sha256,
            "engine": engine and engine.engine,
            "device": engine and engine.device,
            "precision": engine and engine.precision,
            "threads": engine and engine.threads,
            "parity": engine.parity.report() if engine and engine.parity else None,
            "refused": engine and list(engine.rejected),
            **({"cache_loss": asdict(engine.cache_loss)} if engine and engine.cache_loss else {}),
            **_placement(engine),
            **({"startup": dict(engine.startup)} if engine and engine.startup else {}),
            **({"asleep": True} if is_asleep else {}),
            "versions": {
                "embedserve": __version__,
                "ray": version("ray"),
                **(engine.versions if engine else {}),
            },
        }

    async def device(self) -> str | None:
        """Returns the device that runs the model; None until a replica responds."""
        if self._device is None:
            engine = await self._describe_engine()
            self._device = None if engine is None else engine.device
        return self._device

    async def drift(self) -> float | None:
        """Returns how far the model's vectors have moved, as its canary measures it.

        At most a minute old. None: unknown, or too little to matter.
        """
        now_s = time.monotonic()
        if "embed" in self._tasks and now_s >= self._drift_expires_s:
            self._drift_expires_s = now_s + _DRIFT_MAX_AGE_S
            engine = await self._describe_engine()
            self._drift = None if engine is None else engine.drift
        return self._drift if self._drift is not None and self._drift > MAX_DRIFT else None

    async def _describe_engine(self) -> EngineInfo | None:
        """Returns the engine; None: no replica responds, or the call would wake one up."""
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                if await self.is_asleep():
                    return None
                engine = await self._backend.describe()
        except (TimeoutError, EmbedServeError):
            return None
        if engine.startup:
            self._startup_s = math.ceil(sum(engine.startup.values()))
        return engine

    async def _check_breaker(self) -> None:
        engine = await self._backend.describe()
        if engine.failure is not None:
            raise Unavailable(engine.failure)

    async def _run_model(self) -> None:
        task = self.spec.main_task
        value = _PROBE_INPUTS.get(task, _PROBE)
        await self._backend.run(TextGroup((value,), use_cache=False, task=task))


def _placement(engine: EngineInfo | None) -> dict[str, Any]:
    if engine is None or engine.placement is None:
        return {}
    return {"placement": {**asdict(engine.placement), "gpu": engine.gpu and asdict(engine.gpu)}}


def unsupported_task(spec: ModelSpec, task: Task) -> UnsupportedOperation:
    """Returns the error that a model doesn't support a task."""
    return UnsupportedOperation(
        f"The model {spec.name!r} doesn't support `{task}`. It supports: {', '.join(spec.tasks)}.",
        "model",
    )


def _deadline_exceeded(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"No answer within {timeout_s:g} s. Send fewer texts in one request, or try again when "
        "there is less load."
    )
