"""The models of a process: those that its engines run, and those that providers run."""

from collections.abc import Mapping, Set
from typing import Any

from serve_app.config import EmbedderSettings
from serve_app.meter import Gauges
from serve_app.metrics import Metric
from serve_app.providers.provider_pool import ProviderPool
from serve_app.scheduler.engine_pool import EnginePool, PooledEngine
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.scheduler.replica_load import ReplicaLoad


class ModelPools:
    """The pools of a process, as one. Belongs to one event loop."""

    def __init__(self, engines: EnginePool, providers: ProviderPool) -> None:
        self._engines = engines
        self._providers = providers

    def model(self, engine_id: str) -> PooledEngine:
        """Returns the calls of one model."""
        is_remote = engine_id in self._providers.engine_ids
        return self._providers.model(engine_id) if is_remote else self._engines.model(engine_id)

    def gauges(self) -> Gauges:
        """Returns the current value of each gauge, of the models of both pools."""
        gauges: dict[Metric, float | Mapping[Any, float]] = {**self._engines.gauges()}
        for metric, values in self._providers.gauges().items():
            others = gauges.get(metric, {})
            assert isinstance(values, Mapping)
            assert isinstance(others, Mapping)
            gauges[metric] = {**others, **values}
        return gauges

    def sample(self) -> PoolSample:
        """Returns the state of the queues and the engines, of both pools."""
        return self._engines.sample().plus(self._providers.sample())

    def start(self) -> None:
        """Starts the workers. Idempotent; call it in the event loop."""
        self._engines.start()
        self._providers.start()

    def apply(self, settings: EmbedderSettings, cpus: Set[int]) -> None:
        """Applies settings from the next batch on, and moves the threads to other CPUs."""
        self._engines.apply(settings, cpus)
        self._providers.apply(settings)

    async def stop(self) -> None:
        """Stops the workers, and fails queued and later groups with `Unavailable`."""
        await self._engines.stop()
        await self._providers.stop()

    def check_health(self) -> None:
        """Checks that the engines make progress; see `EnginePool.check_health`."""
        self._engines.check_health()

    def sample_load(self) -> ReplicaLoad:
        """Returns the load of the engines, see `EnginePool`: providers need no replicas."""
        return self._engines.sample_load()
