"""The deployment that clients reach: over HTTP by its routes, from Ray jobs by its handle."""

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.config import IngressSettings
from serve_app.deployments.remote import RemoteMethod
from serve_app.models import ModelSpec
from serve_app.service import EmbedService
from serve_app.types import EmbedJob, Float32
from serve_app.web.app import create_app


class RemoteLookup:
    """The CacheLookup deployment, as the service sees it."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.fetch = RemoteMethod(handle, "fetch")
        self.describe = RemoteMethod(handle, "describe")


@serve.ingress()
class Ingress:
    """Takes requests in and sends replies out; holds no model."""

    def __init__(self, spec: ModelSpec, lookup: DeploymentHandle[Any]) -> None:
        self._service = EmbedService(spec, RemoteLookup(lookup), IngressSettings())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._service)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new settings."""
        self._service.apply(IngressSettings.model_validate(user_config))

    async def embed(
        self, texts: Sequence[str], model: str | None = None, input_type: str | None = None
    ) -> Float32:
        """For other Ray jobs: vectors of shape (n, dim), float32, in the order of the texts.

            handle = serve.get_app_handle("embedserve")
            vectors = handle.embed.remote(["a text", "another"]).result()

        Raises:
            EmbedServeError: as `EmbedService.embed`; it reaches the caller as that type.
        """
        given = (texts,) if isinstance(texts, str) else tuple(texts)
        result = await self._service.embed(EmbedJob(given, model, input_type))
        return result.vectors
