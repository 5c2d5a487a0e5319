"""The cache deployment: groups of texts → in-flight requests → L2 → Embedder → vectors."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.coalescer import Deliver
from serve_app.cache.l2 import open_l2_cache
from serve_app.cache.report import CacheReport
from serve_app.cache.stack import CacheStack
from serve_app.config import CacheConfig, CacheLookupSettings
from serve_app.deployments.group_call import GroupResult, collect, group_call
from serve_app.deployments.replica_log import log_to_serve
from serve_app.deployments.retrying_call import returns_errors
from serve_app.deployments.service_identity import current_service
from serve_app.errors import EmbedServeError
from serve_app.metrics import Meter, export
from serve_app.models import ModelSpec
from serve_app.types import CacheState, TextGroup


class CacheLookup:
    """Serves vectors of one model from the cache and computes misses through the Embedder."""

    def __init__(
        self, spec: ModelSpec, embedder: DeploymentHandle[Any], cache: CacheConfig
    ) -> None:
        log_to_serve()
        settings = CacheLookupSettings()
        self._spec = spec
        self._meter = Meter()
        self._cache = CacheStack(
            spec,
            group_call(embedder, spec.space_id),
            l1_max_bytes=settings.l1_max_bytes,
            max_in_flight_calls=settings.max_in_flight_calls,
            dtype=cache.dtype,
            meter=self._meter,
            l2=open_l2_cache(cache, current_service(), spec.space_id, self._meter),
        )
        self._export_task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings. Cached vectors remain as far as they fit into the new limit.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`.
        """
        settings = CacheLookupSettings.parse(user_config)
        self._start()
        self._cache.apply(
            l1_max_bytes=settings.l1_max_bytes, max_in_flight_calls=settings.max_in_flight_calls
        )

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            self._export_task = asyncio.create_task(export(self._meter, self._cache.gauges))
            self._cache.start()

    async def embed(self, space: str, groups: tuple[TextGroup, ...]) -> list[GroupResult] | None:
        """Returns for each group its vectors, or an error as a value; None in another space."""
        if space != self._spec.space_id:
            return None
        return await collect(self._embed, groups)

    async def _embed(self, groups: tuple[TextGroup, ...], deliver: Deliver) -> None:
        async def embed_group(index: int, group: TextGroup) -> None:
            try:
                deliver(index, await self._cache.embed_encoded(group))
            except EmbedServeError as error:
                deliver(index, error)

        await asyncio.gather(*(embed_group(i, group) for i, group in enumerate(groups)))

    async def cache_state(self) -> CacheState:
        """Returns the state of the L2 cache."""
        return self._cache.state

    async def cache_report(self) -> CacheReport:
        """Returns statistics of this replica's cache tiers."""
        return await self._cache.report()

    @returns_errors
    async def purge_cache(self, model: str | None = None) -> int | None:
        """Deletes all vectors from this replica's cache tiers.

        Args:
            model: name or alias of the model to purge; None matches any model.

        Returns:
            The number of deleted vectors, an error as a value, or None if `model` isn't the model
            of this deployment.
        """
        return await self._cache.purge() if self._spec.accepts(model) else None

    async def __del__(self) -> None:
        """Closes the cache; Ray awaits it when the replica stops."""
        await self._cache.close()
