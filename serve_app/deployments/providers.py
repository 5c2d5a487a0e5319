"""The deployment of models that providers run: groups of texts → calls of their APIs → vectors.

It computes nothing and needs no CPU of its own. Its number of replicas is fixed, 1 unless the file
says otherwise: replicas don't make a provider faster, and each has its own limits and breakers.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.schema import ReplicaRank

from serve_app.config import AppConfig, ProvidersSettings
from serve_app.deployments.pool_replica import PoolReplica
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.rollout_order import wait_for_callers
from serve_app.meter import Meter, export
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.providers import load_provider
from serve_app.providers.base import Provider
from serve_app.service.composition import create_provider_pool
from serve_app.tracing import open_tracer


class Providers(PoolReplica):
    """Embeds texts with the models that name this deployment. Doesn't cache."""

    def __init__(
        self,
        config: AppConfig,
        selections: Sequence[EngineSelection],
        *,
        load: Callable[..., Provider] = load_provider,
    ) -> None:
        """Reads the API keys; connections are opened by the first calls.

        Args:
            config: the application's configuration.
            selections: the models of the deployment.
            load: returns the provider for a model's entry and its spec.

        Raises:
            ConfigurationError: a client library isn't installed, or there is no API key.
        """
        log_to_serve()
        deployment = selections[0].model.deployment
        self._meter = Meter()
        self._pool = create_provider_pool(config, selections, meter=self._meter, load=load)
        super().__init__(
            self._pool, self._meter, open_tracer(config.tracing, self._meter, deployment)
        )
        self._export_task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`.
        """
        self._pool.apply(ProvidersSettings.parse(user_config))
        if self._export_task is None:
            await wait_for_callers(("Ingress", "CacheLookup"))
            self._pool.start()
            self._export_task = asyncio.create_task(export(self._meter, self._pool.gauges))

    async def __del__(self) -> None:
        """Cancels the calls and closes the connections; Ray awaits it when the replica stops."""
        await self._pool.stop()
        await self._close_tracer()
