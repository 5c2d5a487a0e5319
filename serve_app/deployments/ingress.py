"""The ingress deployment: requests → L1 → CacheLookup → replies. Holds no model."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, IngressSettings
from serve_app.deployments.call_limit import CallLimit
from serve_app.deployments.engine_call import EngineCall
from serve_app.deployments.group_call import group_call
from serve_app.deployments.group_stream import GroupStream
from serve_app.deployments.http_replica import HttpReplica
from serve_app.deployments.replica_counter import ReplicaCounter
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.service_identity import current_service
from serve_app.deployments.wake_up import WakeUp
from serve_app.meter import Meter
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.service.engine_chains import EngineChains


class _RemoteEngines:
    """The calls of one Embedder deployment that bypass the cache."""

    def __init__(self, embedder: DeploymentHandle[Any], wake_up: WakeUp) -> None:
        methods = ("describe", "tokenize", "decode")
        self._calls = {
            method: RetryingCall(embedder, method, wake_up=wake_up) for method in methods
        }

    def engine(self, engine_id: str) -> "_RemoteEngine":
        """Returns the calls of one model."""
        return _RemoteEngine(
            {name: EngineCall(call, engine_id) for name, call in self._calls.items()}
        )


class _RemoteEngine:
    """The calls of one model that bypass the cache."""

    def __init__(self, calls: Mapping[str, EngineCall]) -> None:
        self.describe = calls["describe"]
        self.tokenize = calls["tokenize"]
        self.decode = calls["decode"]


@serve.ingress()
class Ingress(HttpReplica):
    """Validates requests, serves L1 hits and renders replies."""

    settings_type = IngressSettings

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        lookup: DeploymentHandle[Any],
        embedders: Mapping[str, DeploymentHandle[Any]],
        *,
        cache_server: DeploymentHandle[Any] | None = None,
    ) -> None:
        """Connects the services to the other deployments.

        Args:
            config: the application's configuration.
            selections: the models.
            lookup: the deployment CacheLookup.
            embedders: the deployments that run the models, by name, for calls that aren't cached,
                such as `tokenize`.
            cache_server: the deployment CacheServer, if the cache server is embedded.
        """
        log_to_serve()
        settings, meter = IngressSettings(), Meter()
        specs = [selection.cached_spec for selection in selections]
        cache = CacheStack(
            specs,
            group_call(GroupStream(lookup), "CacheLookup"),
            l1_max_bytes=settings.l1_max_bytes,
            dtype=config.cache.dtype,
            meter=meter,
        )
        counters = {name: ReplicaCounter(name) for name in embedders}
        self._call_limit = CallLimit([*counters.values()], cache.limit_calls)
        engines = {
            name: _RemoteEngines(
                embedder, WakeUp(name, counters[name], timeout_s=config.wake_up_timeout_s)
            )
            for name, embedder in embedders.items()
        }
        deployments = {s.cached_spec.engine_id: s.model.deployment for s in selections}
        chains = EngineChains(
            config.served_models,
            specs,
            lambda engine_id: RetryingCall(embedders[deployments[engine_id]], "check_health"),
        )
        self._serve(
            config,
            specs,
            cache,
            chains.calls(lambda engine_id: engines[deployments[engine_id]].engine(engine_id)),
            meter,
            service=current_service(cache_server),
            cache_state=RetryingCall(lookup, "cache_state"),
            engine_failures=RetryingCall(lookup, "engine_failures"),
            count_replicas=lambda engine_id: counters[deployments[engine_id]],
        )

    def _apply(self, settings: IngressSettings, rank: ReplicaRank) -> None:
        self._cache.apply(l1_max_bytes=settings.l1_max_bytes, l1_eviction=settings.l1_eviction)
        self._call_limit.set(settings.max_in_flight_calls)
        self._call_limit.start()

    async def __del__(self) -> None:
        """Stops counting, and closes what the base class opened; Ray awaits it."""
        await self._call_limit.stop()
        await super().__del__()
