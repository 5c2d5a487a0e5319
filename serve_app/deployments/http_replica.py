"""A replica that takes HTTP requests and handle calls of Ray jobs: request → service → reply."""

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from ray.serve.schema import ReplicaRank
from starlette.types import ASGIApp

from serve_app.access.entrance import Entrance, require_keys_beyond_loopback
from serve_app.access.shared_quota import open_quota_store
from serve_app.cache.report import CacheReport, WarmResult
from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, RequestSettings
from serve_app.deployments.ingress_stats import IngressStats
from serve_app.deployments.retrying_call import returns_errors
from serve_app.deployments.service_identity import current_service, http_host
from serve_app.jobs import EmbedJob
from serve_app.metrics import Gauges, Meter, Totals, export
from serve_app.models import ModelSpec
from serve_app.service.backend import Backend
from serve_app.service.embed import EmbedService
from serve_app.types import Float32, Lane, Tier
from serve_app.web.app import create_app


class HttpReplica:
    """The service of one model in one process, behind HTTP and Ray handles.

    A subclass calls `_serve` when it is created, and implements `_apply`.
    """

    settings_type: ClassVar[type[RequestSettings]]

    def _serve(
        self, spec: ModelSpec, config: AppConfig, cache: CacheStack, backend: Backend, meter: Meter
    ) -> None:
        """Creates the service.

        Args:
            spec: the model.
            config: the application's configuration.
            cache: the cache of this process.
            backend: computes vectors through `cache`.
            meter: counts what the process does.
        """
        self._meter = meter
        self._cache = cache
        self._cors_origins = config.cors_origins
        self._service = EmbedService(
            spec, backend, self.settings_type(), meter, IngressStats(meter)
        )
        quotas = open_quota_store(config.cache, current_service(), meter)
        self._entrance = Entrance(quotas, meter)
        self._export_task: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service, self._entrance, self._cors_origins)

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`, and when it reassigns ranks.

        Raises:
            ConfigurationError: the API keys are invalid, or HTTP is reachable from other machines
                without any. Ray then stops the replica, starts another one and reports the error.
        """
        settings = self.settings_type.parse(user_config)
        require_keys_beyond_loopback(await http_host(), settings.access)
        self._entrance.apply(settings.access)
        if self._export_task is None:
            self._export_task = asyncio.create_task(export(self._meter, self._gauges))
            self._cache.start()
        self._apply(settings, rank)
        self._service.apply(settings)

    def _apply(self, settings: Any, rank: ReplicaRank) -> None:
        """Applies the settings of what a subclass adds."""
        raise NotImplementedError

    def _gauges(self) -> Gauges:
        return self._cache.gauges()

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

    @returns_errors
    async def warm(self, texts: Sequence[str], input_type: str | None = None) -> WarmResult:
        """Embeds texts in the bulk lane to fill the cache."""
        job = EmbedJob(tuple(texts), input_type=input_type, lane="bulk")
        result = await self._service.embed(job)
        return WarmResult(len(texts), result.tiers.tolist().count(Tier.COMPUTED))

    async def cache_report(self) -> CacheReport:
        """Returns statistics of this replica's cache tiers."""
        return await self._cache.report()

    @returns_errors
    async def purge_cache(self, model: str | None = None) -> int | None:
        """Deletes all vectors from this replica's cache tiers.

        Args:
            model: name or alias of the model to purge; None matches any model.

        Returns:
            The number of deleted vectors, an error as a value, or None if `model` isn't served
            here.
        """
        return await self._cache.purge() if self._service.spec.accepts(model) else None

    async def replica_totals(self) -> Totals:
        """Returns the totals of the requests that this replica answered."""
        return self._meter.totals()

    async def reset_totals(self) -> None:
        """Resets the totals of this replica to zero."""
        self._meter.reset()

    async def __del__(self) -> None:
        """Closes the cache and the quota store; Ray awaits it when the replica stops."""
        await self._entrance.close()
        await self._cache.close()
