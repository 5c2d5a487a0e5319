"""The deployment in front of the Embedder: answers from the cache, has the rest computed."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.cache.coalescer import Coalescer
from serve_app.cache.stack import CacheStack
from serve_app.config import CacheConfig, CacheLookupSettings
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.service_identity import open_l2_cache
from serve_app.errors import EmbedServeError
from serve_app.metrics import Meter, export
from serve_app.models import ModelSpec
from serve_app.types import CacheReport, CacheState, TextGroup, Vectors


class CacheLookup:
    """Looks groups of texts up for one model; owns the way to the shared tier."""

    def __init__(
        self, spec: ModelSpec, embedder: DeploymentHandle[Any], cache: CacheConfig
    ) -> None:
        settings = CacheLookupSettings()
        self._spec = spec
        self._meter = Meter()
        self._compute = Coalescer(RetryingCall(embedder, "embed"), settings.max_in_flight_calls)
        self._tiers = CacheStack(
            spec,
            self._compute,
            l1_max_bytes=settings.l1_max_bytes,
            storage=cache.dtype,
            meter=self._meter,
            l2=open_l2_cache(cache, spec.space_id, self._meter),
        )
        self._exporting: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Takes new settings; what is cached stays as far as it fits.

        Ray calls it before the first request and at each change; `rank` makes it call even where
        there is no `user_config`.
        """
        settings = CacheLookupSettings.parse(user_config)
        if self._exporting is None:
            self._exporting = asyncio.create_task(export(self._meter, self._tiers.gauges))
            self._tiers.start()
        self._tiers.resize(settings.l1_max_bytes)
        self._compute.max_in_flight_calls = settings.max_in_flight_calls

    async def embed(self, groups: tuple[TextGroup, ...]) -> list[Vectors | EmbedServeError]:
        """For each group its vectors, or the error that stands for them."""
        return await asyncio.gather(*(self._embed(group) for group in groups))

    async def _embed(self, group: TextGroup) -> Vectors | EmbedServeError:
        try:
            return await self._tiers.embed(group)
        except EmbedServeError as error:
            return error

    async def cache_state(self) -> CacheState:
        """How the shared tier is."""
        return self._tiers.state

    async def cache_report(self) -> CacheReport:
        """What this replica knows of its tiers."""
        return await self._tiers.report()

    async def purge_cache(self, model: str | None = None) -> int | EmbedServeError | None:
        """Forgets all vectors in this replica's tiers, and tells how many.

        None: `model` is another one than what is looked up here.
        """
        if not self._spec.accepts(model):
            return None
        try:
            return await self._tiers.purge()
        except EmbedServeError as error:
            return error

    async def __del__(self) -> None:
        """Ray calls it when the replica stops."""
        await self._tiers.close()
