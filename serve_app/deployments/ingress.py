"""The deployment that clients reach: over HTTP by its routes, from Ray jobs by its handle."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.types import ASGIApp

from serve_app.access.entrance import Entrance, require_keys_beyond_loopback
from serve_app.cache.coalescer import Coalescer
from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, IngressSettings
from serve_app.deployments.ingress_stats import IngressStats
from serve_app.deployments.retrying_call import RetryingCall
from serve_app.deployments.service_identity import http_host, open_l2_cache, open_quota_store
from serve_app.errors import EmbedServeError
from serve_app.metrics import Meter, Totals, export
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import CacheReport, CacheState, EmbedJob, Float32, Lane, Tier, WarmResult
from serve_app.web.app import create_app


class _Backend:
    """What is behind the service: its own tiers, then other deployments."""

    def __init__(
        self,
        spec: ModelSpec,
        handle: DeploymentHandle[Any],
        config: AppConfig,
        embedder: DeploymentHandle[Any],
        meter: Meter,
    ) -> None:
        settings = IngressSettings()
        cache, inline = config.cache, config.topology == "inline"
        self._rest = Coalescer(RetryingCall(handle, "embed"), settings.max_in_flight_calls)
        self.tiers = CacheStack(
            spec,
            self._rest,
            l1_max_bytes=settings.l1_max_bytes,
            storage=cache.dtype,
            meter=meter,
            l2=open_l2_cache(cache, spec.space_id, meter) if inline else None,
        )
        self.embed = self.tiers.embed
        self.describe = RetryingCall(embedder, "describe")
        self.tokenize = RetryingCall(embedder, "tokenize")
        self.decode = RetryingCall(embedder, "decode")
        self.embed_tokens = RetryingCall(embedder, "embed_tokens")
        self.cache_state = self._own_state if inline else RetryingCall(handle, "cache_state")

    def apply(self, settings: IngressSettings) -> None:
        """Takes new settings; what is cached stays as far as it fits."""
        self.tiers.resize(settings.l1_max_bytes)
        self._rest.max_in_flight_calls = settings.max_in_flight_calls

    async def _own_state(self) -> CacheState:
        return self.tiers.state


@serve.ingress()
class Ingress:
    """Takes requests in and sends replies out; holds no model."""

    def __init__(
        self,
        spec: ModelSpec,
        handle: DeploymentHandle[Any],
        config: AppConfig,
        embedder: DeploymentHandle[Any],
    ) -> None:
        """Serves a model.

        Args:
            spec: the model.
            handle: the next tier: CacheLookup, or with `topology: inline` the Embedder itself.
            config: what is asked for.
            embedder: the Embedder, for what nobody caches.
        """
        self._meter = Meter()
        self._cors_origins = config.cors_origins
        self._behind = _Backend(spec, handle, config, embedder, self._meter)
        replica_stats = IngressStats(self._meter)
        self._service = EmbedService(
            spec, self._behind, IngressSettings(), self._meter, replica_stats
        )
        self._access = Entrance(open_quota_store(config.cache, self._meter), self._meter)
        self._exporting: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service, self._access, self._cors_origins)

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Takes new settings.

        Ray calls it before the first request and at each change; `rank` makes it call even where
        there is no `user_config`.

        Raises:
            ConfigurationError: its keys can't be used, or it has none and others are let in. Ray
                ends the replica then, tries a new one, and tells why.
        """
        settings = IngressSettings.parse(user_config)
        require_keys_beyond_loopback(await http_host(), settings.access)
        self._access.apply(settings.access)
        if self._exporting is None:
            self._exporting = asyncio.create_task(export(self._meter, self._behind.tiers.gauges))
            self._behind.tiers.start()
        self._behind.apply(settings)
        self._service.apply(settings)

    async def embed(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
    ) -> Float32:
        """For other Ray jobs: vectors of shape (n, dim), float32, in the order of the texts.

            handle = serve.get_app_handle("embedserve")
            vectors = handle.embed.remote(["a text", "another"]).result()

        Raises:
            EmbedServeError: as `EmbedService.embed`; it reaches the caller as that type.
        """
        given = (texts,) if isinstance(texts, str) else tuple(texts)
        result = await self._service.embed(
            EmbedJob(given, model, input_type, lane=lane, use_cache=use_cache)
        )
        return result.vectors

    async def space(self) -> str:
        """For other Ray jobs: what the vectors of `embed` are made by, `<family>-<precision>`.

        Vectors of two spaces can't be compared, but those of one family at float precisions.
        """
        return self._service.spec.space_id

    async def warm(
        self, texts: Sequence[str], input_type: str | None = None
    ) -> WarmResult | EmbedServeError:
        """Embeds texts as bulk, so that the cache knows them."""
        try:
            job = EmbedJob(tuple(texts), input_type=input_type, lane="bulk")
            result = await self._service.embed(job)
        except EmbedServeError as error:
            return error
        return WarmResult(len(texts), result.tiers.tolist().count(Tier.COMPUTED))

    async def cache_report(self) -> CacheReport:
        """What this replica knows of its tiers."""
        return await self._behind.tiers.report()

    async def purge_cache(self, model: str | None = None) -> int | EmbedServeError | None:
        """Forgets all vectors in this replica's tiers, and tells how many.

        None: `model` is another one than what is served here.
        """
        if not self._service.spec.accepts(model):
            return None
        try:
            return await self._behind.tiers.purge()
        except EmbedServeError as error:
            return error

    async def replica_totals(self) -> Totals:
        """What this replica has answered."""
        return self._meter.totals()

    async def reset_totals(self) -> None:
        """Counts what it answers from zero."""
        self._meter.reset()

    async def __del__(self) -> None:
        """Ray calls it when the replica stops."""
        await self._access.close()
        await self._behind.tiers.close()
