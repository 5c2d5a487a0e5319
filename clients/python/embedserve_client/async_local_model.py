"""A local model with the interface of `AsyncClient`."""

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from embedserve_client.base import EmbedOptions
from embedserve_client.errors import LocalModelError
from embedserve_client.local_model import LocalModel
from embedserve_client.vectors import Vectors
from embedserve_client.wire import EmbedParams

#: Options of `EmbedOptions` without a meaning for a model in this process.
_SERVICE_OPTIONS = ("timeout_s", "lane", "use_cache")


class AsyncLocalModel:
    """A `LocalModel` for event loops; it computes on another thread."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds texts; see `Client.embed`.

        Raises:
            LocalModelError: `model` names another model, or see `LocalModel.embed`.
        """
        model = options.get("model")
        if model not in (None, self._model.source):
            raise LocalModelError(f"There is no model {model!r} here, only {self._model}.")
        params: dict[str, Any] = {
            name: value for name, value in options.items() if name not in _SERVICE_OPTIONS
        }
        batch = [texts] if isinstance(texts, str) else texts
        vectors = await asyncio.to_thread(self._model.embed, batch, EmbedParams(**params))
        result: Vectors = vectors[0] if isinstance(texts, str) else vectors
        return result

    async def close(self) -> None:
        """Does nothing; a local model has no connections."""
