"""The deployment that clients reach: over HTTP by its routes, from Ray jobs by its handle."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.types import ASGIApp

from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.coalescer import Coalescer
from serve_app.config import IngressSettings
from serve_app.deployments.remote import RemoteMethod
from serve_app.metrics import export
from serve_app.models import ModelSpec
from serve_app.service import EmbedService
from serve_app.types import EmbedJob, Float32, Lane
from serve_app.web.app import create_app


class _Tiers:
    """What is behind the service: its own memory, then another deployment."""

    def __init__(self, spec: ModelSpec, handle: DeploymentHandle[Any], method: str) -> None:
        settings = IngressSettings()
        self._memory = MemoryCache(settings.memory_max_bytes)
        self._rest = Coalescer(RemoteMethod(handle, method), settings.max_calls)
        self.fetch = Lookup(spec.space_id, spec.dim, self._memory, self._rest).fetch
        self.describe = RemoteMethod(handle, "describe")

    def apply(self, settings: IngressSettings) -> None:
        """Takes new settings; what is cached stays as far as it fits."""
        self._memory.resize(settings.memory_max_bytes)
        self._rest.max_calls = settings.max_calls


@serve.ingress()
class Ingress:
    """Takes requests in and sends replies out; holds no model."""

    def __init__(self, spec: ModelSpec, handle: DeploymentHandle[Any], method: str) -> None:
        """Serves a model.

        Args:
            spec: the model.
            handle: the next tier, CacheLookup or the Embedder itself.
            method: the one of its methods that answers groups of texts.
        """
        self._tiers = _Tiers(spec, handle, method)
        self._service = EmbedService(spec, self._tiers, IngressSettings())
        self._exporting: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service)

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Takes new settings.

        Ray calls it before the first request and at each change; `rank` makes it call even where
        there is no `user_config`.
        """
        if self._exporting is None:
            self._exporting = asyncio.create_task(export(self._service.meter))
        settings = IngressSettings.model_validate(user_config or {})
        self._tiers.apply(settings)
        self._service.apply(settings)

    async def embed(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
    ) -> Float32:
        """For other Ray jobs: vectors of shape (n, dim), float32, in the order of the texts.

            handle = serve.get_app_handle("embedserve")
            vectors = handle.embed.remote(["a text", "another"]).result()

        Raises:
            EmbedServeError: as `EmbedService.embed`; it reaches the caller as that type.
        """
        given = (texts,) if isinstance(texts, str) else tuple(texts)
        result = await self._service.embed(EmbedJob(given, model, input_type, lane=lane))
        return result.vectors
