"""The ingress deployment: HTTP requests and handle calls of Ray jobs → service → replies."""

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
    """The service's backend: this replica's cache tiers, then the next deployments."""

    def __init__(
        self,
        spec: ModelSpec,
        next_tier: DeploymentHandle[Any],
        config: AppConfig,
        embedder: DeploymentHandle[Any],
        meter: Meter,
    ) -> None:
        settings = IngressSettings()
        cache, inline = config.cache, config.topology == "inline"
        self._next_tier = Coalescer(RetryingCall(next_tier, "embed"), settings.max_in_flight_calls)
        self.cache = CacheStack(
            spec,
            self._next_tier,
            l1_max_bytes=settings.l1_max_bytes,
            dtype=cache.dtype,
            meter=meter,
            l2=open_l2_cache(cache, spec.space_id, meter) if inline else None,
        )
        self.embed = self.cache.embed
        self.describe = RetryingCall(embedder, "describe")
        self.tokenize = RetryingCall(embedder, "tokenize")
        self.decode = RetryingCall(embedder, "decode")
        self.embed_tokens = RetryingCall(embedder, "embed_tokens")
        self.cache_state = self._l2_state if inline else RetryingCall(next_tier, "cache_state")

    def apply(self, settings: IngressSettings) -> None:
        """Applies settings. Cached vectors remain as far as they fit into the new limit."""
        self.cache.resize(settings.l1_max_bytes)
        self._next_tier.max_in_flight_calls = settings.max_in_flight_calls

    async def _l2_state(self) -> CacheState:
        return self.cache.state


@serve.ingress()
class Ingress:
    """Validates requests, serves L1 hits and renders replies. Holds no model."""

    def __init__(
        self,
        spec: ModelSpec,
        next_tier: DeploymentHandle[Any],
        config: AppConfig,
        embedder: DeploymentHandle[Any],
    ) -> None:
        """Connects the service to the next deployments.

        Args:
            spec: the model.
            next_tier: computes cache misses: CacheLookup, or with `topology: inline` the Embedder.
            config: the application's configuration.
            embedder: the Embedder, for calls that aren't cached, such as `tokenize`.
        """
        self._meter = Meter()
        self._cors_origins = config.cors_origins
        self._backend = _Backend(spec, next_tier, config, embedder, self._meter)
        replica_stats = IngressStats(self._meter)
        self._service = EmbedService(
            spec, self._backend, IngressSettings(), self._meter, replica_stats
        )
        self._entrance = Entrance(open_quota_store(config.cache, self._meter), self._meter)
        self._export_task: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service, self._entrance, self._cors_origins)

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`.

        Raises:
            ConfigurationError: the API keys are invalid, or HTTP is reachable from other machines
                without any. Ray then stops the replica, starts another one and reports the error.
        """
        settings = IngressSettings.parse(user_config)
        require_keys_beyond_loopback(await http_host(), settings.access)
        self._entrance.apply(settings.access)
        self._start()
        self._backend.apply(settings)
        self._service.apply(settings)

    def _start(self) -> None:
        """Starts the background tasks on the first call."""
        if self._export_task is None:
            self._export_task = asyncio.create_task(export(self._meter, self._backend.cache.gauges))
            self._backend.cache.start()

    async def embed(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
    ) -> Float32:
        """Embeds texts for another Ray job.

            handle = serve.get_app_handle("embedserve")
            vectors = handle.embed.remote(["a text", "another"]).result()

        Args:
            texts: a text or several.
            model: name or alias of the model; None selects the served model.
            input_type: name of one of the model's prompts; None selects the default prompt.
            lane: priority; None selects it by the number of texts.
            use_cache: False computes the vectors and doesn't store them.

        Returns:
            Vectors of shape (n, dim), float32, in the order of the texts.

        Raises:
            EmbedServeError: see `EmbedService.embed`; the caller gets the same type.
        """
        inputs = (texts,) if isinstance(texts, str) else tuple(texts)
        result = await self._service.embed(
            EmbedJob(inputs, model, input_type, lane=lane, use_cache=use_cache)
        )
        return result.vectors

    async def space(self) -> str:
        """Returns the embedding space of the vectors of `embed`, `<family>-<precision>`.

        Vectors are comparable if their spaces are equal, or are float precisions of one family.
        """
        return self._service.spec.space_id

    async def warm(
        self, texts: Sequence[str], input_type: str | None = None
    ) -> WarmResult | EmbedServeError:
        """Embeds texts in the bulk lane to fill the cache."""
        try:
            job = EmbedJob(tuple(texts), input_type=input_type, lane="bulk")
            result = await self._service.embed(job)
        except EmbedServeError as error:
            return error
        return WarmResult(len(texts), result.tiers.tolist().count(Tier.COMPUTED))

    async def cache_report(self) -> CacheReport:
        """Returns statistics of this replica's cache tiers."""
        return await self._backend.cache.report()

    async def purge_cache(self, model: str | None = None) -> int | EmbedServeError | None:
        """Deletes all vectors from this replica's cache tiers.

        Args:
            model: name or alias of the model to purge; None matches any model.

        Returns:
            The number of deleted vectors, an error as a value, or None if `model` isn't served
            here.
        """
        if not self._service.spec.accepts(model):
            return None
        try:
            return await self._backend.cache.purge()
        except EmbedServeError as error:
            return error

    async def replica_totals(self) -> Totals:
        """Returns the totals of the requests that this replica answered."""
        return self._meter.totals()

    async def reset_totals(self) -> None:
        """Resets the totals of this replica to zero."""
        self._meter.reset()

    async def __del__(self) -> None:
        """Closes the cache and the quota store; Ray awaits it when the replica stops."""
        await self._entrance.close()
        await self._backend.cache.close()
