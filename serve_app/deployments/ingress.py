"""The ingress deployment: requests → L1 → CacheLookup → replies. Holds no model."""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, IngressSettings
from serve_app.deployments.group_call import group_call
from serve_app.deployments.http_replica import HttpReplica
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.space_call import SpaceCall
from serve_app.metrics import Meter
from serve_app.models import ModelSpec
from serve_app.service.backend import CachedBackend


class _RemoteEngine:
    """The calls of an Embedder that bypass the cache."""

    def __init__(self, embedder: DeploymentHandle[Any], space: str) -> None:
        self.describe = RetryingCall(embedder, "describe")
        self.tokenize = RetryingCall(embedder, "tokenize")
        self.decode = RetryingCall(embedder, "decode")
        self.embed_tokens = SpaceCall(embedder, "embed_tokens", space)


@serve.ingress()
class Ingress(HttpReplica):
    """Validates requests, serves L1 hits and renders replies."""

    settings_type = IngressSettings

    def __init__(
        self,
        spec: ModelSpec,
        lookup: DeploymentHandle[Any],
        config: AppConfig,
        embedder: DeploymentHandle[Any],
    ) -> None:
        """Connects the service to the other deployments.

        Args:
            spec: the model.
            lookup: the deployment CacheLookup.
            config: the application's configuration.
            embedder: the deployment Embedder, for calls that aren't cached, such as `tokenize`.
        """
        log_to_serve()
        settings, meter = IngressSettings(), Meter()
        cache = CacheStack(
            spec,
            group_call(lookup, spec.space_id),
            l1_max_bytes=settings.l1_max_bytes,
            max_in_flight_calls=settings.max_in_flight_calls,
            dtype=config.cache.dtype,
            meter=meter,
        )
        cache_state = RetryingCall(lookup, "cache_state")
        backend = CachedBackend(cache, _RemoteEngine(embedder, spec.space_id), cache_state)
        self._serve(spec, config, cache, backend, meter)

    def _apply(self, settings: IngressSettings, rank: ReplicaRank) -> None:
        self._cache.apply(
            l1_max_bytes=settings.l1_max_bytes, max_in_flight_calls=settings.max_in_flight_calls
        )
