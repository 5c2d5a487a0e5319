"""The deployment of `topology: colocated`: requests → cache → engine → replies, in one process."""

import dataclasses
from collections.abc import Callable

from ray import serve
from ray.serve.schema import ReplicaRank

from serve_app.cache.l2 import open_l2_cache
from serve_app.cache.stack import CacheStack
from serve_app.config import EmbedServerSettings
from serve_app.deployments.http_replica import HttpReplica
from serve_app.deployments.replica_engine import ReplicaCpus, load_replica_engine
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.service_identity import current_service
from serve_app.engines.base import Engine
from serve_app.metrics import Gauges, Meter
from serve_app.model_prep.engine_selection import EngineSelection, load_engine
from serve_app.service.backend import CachedBackend


@serve.ingress()
class EmbedServer(HttpReplica):
    """Does the work of Ingress, CacheLookup and Embedder without calls between processes."""

    settings_type = EmbedServerSettings

    def __init__(
        self,
        selection: EngineSelection,
        *,
        load: Callable[..., Engine] = load_engine,
    ) -> None:
        """Loads the engine; see `load_replica_engine`.

        Args:
            selection: the engine and the model that the application was built with.
            load: returns the engine for `selection` and `threads`.
        """
        log_to_serve()
        config, spec = selection.config, selection.cached_spec
        settings, meter = EmbedServerSettings(), Meter()
        self._cpus = ReplicaCpus()
        self._engine = load_replica_engine(selection, self._cpus, meter, load=load)
        cache = CacheStack(
            spec,
            self._engine.embed,
            l1_max_bytes=settings.l1_max_bytes,
            dtype=config.cache.dtype,
            meter=meter,
            l2=open_l2_cache(config.cache, current_service(), spec.space_id, meter),
        )
        self._serve(spec, config, cache, CachedBackend(cache, self._engine), meter)

    def _apply(self, settings: EmbedServerSettings, rank: ReplicaRank) -> None:
        self._engine.start()
        self._engine.apply(settings, self._cpus.of_rank(rank.local_rank))
        self._cache.apply(l1_max_bytes=settings.l1_max_bytes)

    def _gauges(self) -> Gauges:
        return {**self._cache.gauges(), **self._engine.gauges()}

    async def check_health(self) -> None:
        """Raises if the engine stalls; Ray then replaces the replica."""
        self._engine.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns the metrics that `autoscale.TokenPolicy` scales by."""
        return dataclasses.asdict(self._engine.sample_load())
