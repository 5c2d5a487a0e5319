"""The models that a process serves: name → `EmbedService`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from serve_app.config import RequestSettings
from serve_app.errors import EmbedServeError, ModelNotFound, UnsupportedOperation, short_repr
from serve_app.live.live_feed import LiveFeed, Topology
from serve_app.live.model_status import ModelStatus
from serve_app.live.shadow_sample import ShadowSample
from serve_app.metrics import Metric
from serve_app.models import ModelSpec
from serve_app.service.alias import Alias
from serve_app.service.embed import EmbedService
from serve_app.service.health import HealthReport, service_report
from serve_app.service.replica_stats import ReplicaStats, SingleReplica
from serve_app.tasks import Task

#: Returns the models of a chain whose own engine fails at the moment, with the reasons.
EngineFailures = Callable[[], Awaitable[Mapping[str, str]]]

_STATUS_TIMEOUT_S = 2.0


class Fallback(NamedTuple):
    """The models that answer in place of another one."""

    models: Sequence[str]  #: while that one fails, in this order
    spill_over_after_s: float | None = None  #: the first also does beyond this wait; None: never


class Catalog:
    """The services of all models, and what they share: settings and metrics."""

    def __init__(
        self,
        services: Sequence[EmbedService],
        replica_stats: ReplicaStats | None = None,
        *,
        defaults: Mapping[Task, str] | None = None,
        fallbacks: Mapping[str, Fallback] | None = None,
        engine_failures: EngineFailures | None = None,
        aliases: Sequence[Alias] = (),
        topology: Topology = "standalone",
    ) -> None:
        """Creates a catalog.

        Args:
            services: one for each model, whose names and aliases are distinct.
            replica_stats: statistics over all replicas of the service; None: this process only.
            defaults: for each task the model of requests that name none; otherwise the first model
                whose main task it is, or else the first one that supports it.
            fallbacks: for the name of a model which others answer in its place.
            engine_failures: returns the models whose own engine fails, with the reasons; called
                only if there are fallbacks.
            aliases: further names, each of one service, or of two.
            topology: of the service, for `live`.
        """
        self.services = services
        self.meter = services[0].meter.process
        self.replica_stats = replica_stats or SingleReplica(self.meter)
        self._by_name = {
            name: service
            for service in services
            for name in (service.spec.name, *service.spec.aliases)
        }
        self._by_name |= {alias.name: alias.primary for alias in aliases}
        self.aliases = aliases
        self._shadows = [alias.shadow for alias in aliases if alias.shadow is not None]
        #: Those of two models; None stands for requests for embeddings that name no model.
        self._split: dict[str | None, Alias] = {a.name: a for a in aliases if a.has_second}
        last_to_first = services[::-1]
        #: For each task that is supported the service of requests that name no model.
        self.defaults: Mapping[Task, EmbedService] = {
            **{task: service for service in last_to_first for task in service.spec.tasks},
            **{service.spec.main_task: service for service in last_to_first},
            **{task: self._by_name[name] for task, name in (defaults or {}).items()},
        }
        for alias in aliases:
            if alias.is_default:
                self.defaults = {**self.defaults, "embed": alias.primary}
                if alias.name in self._split:
                    self._split[None] = alias

        self.fallbacks = fallbacks or {}
        #: Snapshots of the service, for those who watch it.
        self.live = LiveFeed(
            self.replica_stats.sample,
            self.model_statuses,
            models=[service.unknown_status for service in services],
            topology=topology,
        )
        self._engine_failures = engine_failures

    @property
    def default(self) -> EmbedService:
        """The service of the first model."""
        return self.services[0]

    @property
    def names(self) -> list[tuple[ModelSpec, str]]:
        """Each name and alias, with its model."""
        specs = [service.spec for service in self.services]
        names = [(spec, name) for spec in specs for name in (spec.name, *spec.aliases)]
        return names + [(alias.primary.spec, alias.name) for alias in self.aliases]

    @property
    def settings(self) -> RequestSettings:
        """The settings of the process."""
        return self.services[0].settings

    def apply(self, settings: RequestSettings) -> None:
        """Applies new settings to all models.

        Raises:
            ConfigurationError: see `EmbedService.apply`.
        """
        for service in self.services:
            service.apply(settings)

    def gauges(self) -> Mapping[Metric, Mapping[Any, float]]:
        """Returns how far the models of aliases agree."""
        gauges: dict[Metric, Mapping[Any, float]] = {}
        for shadow in self._shadows:
            for metric, values in shadow.gauges().items():
                gauges[metric] = {**gauges.get(metric, {}), **values}
        return gauges

    def shadow_samples(self) -> Sequence[ShadowSample]:
        """Returns what this process knows of each shadow."""
        return [shadow.sample() for shadow in self._shadows]

    async def close(self) -> None:
        """Ends the streams of snapshots, and the comparisons of models."""
        self.live.close()
        for shadow in self._shadows:
            await shadow.close()

    async def health(self) -> HealthReport:
        """Returns the health of the service; see `service_report`."""
        return service_report([*(await self.health_by_model()).values()])

    async def health_by_model(self) -> Mapping[str, HealthReport]:
        """Returns the health of each model, by its name."""
        reports = await asyncio.gather(*(service.health() for service in self.services))
        names = (service.spec.name for service in self.services)
        return dict(zip(names, reports, strict=True))

    async def model_statuses(self) -> Sequence[ModelStatus]:
        """Returns the state of each model."""
        return await asyncio.gather(*(service.status() for service in self.services))

    async def engine_failures(self) -> Mapping[str, str]:
        """Returns the models whose fallback answers at the moment, with the reasons."""
        if not self.fallbacks or self._engine_failures is None:
            return {}
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                return await self._engine_failures()
        except (TimeoutError, EmbedServeError):
            return {}

    def alternatives(self, service: EmbedService) -> list[EmbedService]:
        """Returns the services of other spaces that run a model's jobs while it fails.

        Models of its own space compute below the cache.
        """
        fallback = self.fallbacks.get(service.spec.name)
        services = map(self._by_name.__getitem__, fallback.models if fallback else ())
        return [s for s in services if s.spec.space_id != service.spec.space_id]

    async def drifts(self) -> Mapping[str, float]:
        """Returns how far vectors have moved, of the models for which it matters, by name."""
        drifts = await asyncio.gather(*(service.drift() for service in self.services))
        names = (service.spec.name for service in self.services)
        return {name: drift for name, drift in zip(names, drifts, strict=True) if drift is not None}

    def resolve(self, name: str | None, task: Task | None = None) -> EmbedService:
        """Returns the service of a model.

        Args:
            name: name or alias of the model; None: the default model of the task.
            task: what the model must support; None: anything.

        Raises:
            ModelNotFound: no model has this name.
            UnsupportedOperation: none of several models supports the task.
        """
        if name is None:
            return self.default if task is None else self._default(task)
        service = self._by_name.get(name)
        if service is None:
            names = ", ".join(repr(service.spec.name) for service in self.services)
            raise ModelNotFound(
                f"The model {short_repr(name)} isn't served here. Served: {names}.", "model"
            )
        return service

    def alias(self, name: str | None, task: Task | None = None) -> Alias | None:
        """Returns the alias of two models that a request names; None: it names one model.

        Args:
            name: as in `resolve`.
            task: of a request that names no model.
        """
        if not self._split or (name is None and task != "embed"):
            return None
        return self._split.get(name)

    def _default(self, task: Task) -> EmbedService:
        service = self.defaults.get(task)
        if service is None and len(self.services) == 1:
            return self.default  # which says in its own words that it doesn't
        if service is None:
            kinds = ", ".join(
                f"{service.spec.name!r} ({', '.join(service.spec.tasks)})"
                for service in self.services
            )
            raise UnsupportedOperation(
                f"No model here supports `{task}`. Served: {kinds}.", "model"
            )
        return service
