"""The deployment in front of the Embedder: answers from memory, has the rest computed."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.coalescer import Coalescer
from serve_app.config import CacheLookupSettings
from serve_app.deployments.remote import RemoteMethod
from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EngineInfo, TextGroup, Vectors


class CacheLookup:
    """Looks groups of texts up for one model."""

    def __init__(self, spec: ModelSpec, embedder: DeploymentHandle[Any]) -> None:
        settings = CacheLookupSettings()
        self._memory = MemoryCache(settings.memory_max_bytes)
        self._compute = Coalescer(RemoteMethod(embedder, "embed"), settings.max_calls)
        self._lookup = Lookup(spec.space_id, spec.dim, self._memory, self._compute)
        self._describe = RemoteMethod(embedder, "describe")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; what is cached stays as far as it fits."""
        settings = CacheLookupSettings.model_validate(user_config)
        self._memory.resize(settings.memory_max_bytes)
        self._compute.max_calls = settings.max_calls

    async def fetch(self, groups: tuple[TextGroup, ...]) -> list[Vectors | EmbedServeError]:
        """For each group its vectors, or the error that stands for them."""
        return await asyncio.gather(*(self._fetch(group) for group in groups))

    async def _fetch(self, group: TextGroup) -> Vectors | EmbedServeError:
        try:
            return await self._lookup.fetch(group)
        except EmbedServeError as error:
            return error

    async def describe(self) -> EngineInfo | EmbedServeError:
        """What runs the model in one of the Embedder's replicas."""
        try:
            info: EngineInfo = await self._describe()
        except EmbedServeError as error:
            return error
        return info
