"""The deployment of `topology: colocated`: requests → cache → engine → replies, in one process."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.l2 import open_l2_cache
from serve_app.cache.stack import CacheStack
from serve_app.config import EMBEDDER, AppConfig, EmbedServerSettings
from serve_app.deployments.http_replica import HttpReplica
from serve_app.deployments.replica_engine import ReplicaCpus, load_replica_engines
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.service_identity import current_service
from serve_app.engines.base import Engine
from serve_app.meter import Gauges, Meter
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.service.composition import create_provider_pool
from serve_app.service.engine_chains import EngineChains
from serve_app.service.model_pools import ModelPools


@serve.ingress()
class EmbedServer(HttpReplica):
    """Does the work of Ingress, CacheLookup and Embedder without calls between processes."""

    settings_type = EmbedServerSettings

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        *,
        cache_server: DeploymentHandle[Any] | None = None,
        load: Callable[..., Engine] = load_engine,
    ) -> None:
        """Loads the engines; see `load_replica_engines`.

        Args:
            config: the application's configuration.
            selections: the models, and the engines that the application was built with.
            cache_server: the deployment CacheServer, if the cache server is embedded.
            load: returns the engine for a selection and `threads`.
        """
        log_to_serve()
        settings, meter = EmbedServerSettings(), Meter()
        specs = [selection.cached_spec for selection in selections]
        self._cpus = ReplicaCpus(config, EMBEDDER)
        self._pool = ModelPools(
            load_replica_engines(config, selections, self._cpus, meter, load=load),
            create_provider_pool(config, selections, meter=meter),
        )
        service = current_service(cache_server)
        chains = EngineChains(config.served_models, specs)
        cache = CacheStack(
            specs,
            chains.sends(lambda engine_id: self._pool.model(engine_id).run, meter),
            l1_max_bytes=settings.l1_max_bytes,
            dtype=config.cache.dtype,
            meter=meter,
            l2=open_l2_cache(config.cache, service, meter),
        )
        self._serve(
            config,
            specs,
            cache,
            chains.calls(self._pool.model),
            meter,
            service=service,
            cache_state=cache.cache_state,
            engine_failures=chains.engine_failures,
            pool=self._pool.sample,
        )

    def _apply(self, settings: EmbedServerSettings, rank: ReplicaRank) -> None:
        self._pool.start()
        self._pool.apply(settings, self._cpus.of_rank(rank.local_rank))
        self._cache.apply(l1_max_bytes=settings.l1_max_bytes, l1_eviction=settings.l1_eviction)

    def _gauges(self) -> Gauges:
        return {**super()._gauges(), **self._pool.gauges()}

    async def check_health(self) -> None:
        """Raises if an engine stalls; Ray then replaces the replica."""
        self._pool.check_health()

    async def __del__(self) -> None:
        """Closes the connections as well; Ray awaits it when the replica stops."""
        await self._pool.stop()
        await super().__del__()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that `autoscale.TokenPolicy` scales by."""
        return dataclasses.asdict(self._pool.sample_load())
