"""The deployment in front of the Embedder: answers from memory, has the rest computed."""

from typing import Any

from ray.serve.handle import DeploymentHandle

from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.config import CacheLookupSettings
from serve_app.deployments.remote import RemoteMethod
from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EngineInfo, TextGroup, Vectors


class CacheLookup:
    """Looks groups of texts up for one model."""

    def __init__(self, spec: ModelSpec, embedder: DeploymentHandle[Any]) -> None:
        self._memory = MemoryCache(CacheLookupSettings().memory_max_bytes)
        compute = RemoteMethod(embedder, "embed")
        self._lookup = Lookup(spec.space_id, spec.dim, self._memory, compute)
        self._describe = RemoteMethod(embedder, "describe")

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings; what is cached stays as far as it fits."""
        settings = CacheLookupSettings.model_validate(user_config)
        self._memory.resize(settings.memory_max_bytes)

    async def fetch(self, group: TextGroup) -> Vectors | EmbedServeError:
        """Vectors of a group, or the error that stands for them."""
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
