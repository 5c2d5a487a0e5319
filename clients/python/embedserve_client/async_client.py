"""The asynchronous client."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Unpack, overload

from embedserve_client import base
from embedserve_client.async_base import AsyncBaseClient
from embedserve_client.base import (
    ClassifyOptions,
    EmbedOptions,
    ImageOptions,
    RerankOptions,
    SparseOptions,
)
from embedserve_client.classify import LabelScore
from embedserve_client.errors import EmbedError
from embedserve_client.images import ImageInput
from embedserve_client.rerank import RerankResult
from embedserve_client.retry import Send
from embedserve_client.sparse import SparseVector
from embedserve_client.vectors import Vectors
from embedserve_client.wire import get_request


class AsyncClient(AsyncBaseClient):
    """`Client` for asyncio. Cancelling a call cancels its requests.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        vectors = await client.embed(["a text", "another"])
    """

    async def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds texts; see `Client.embed`."""
        if isinstance(texts, str):
            vectors: Vectors = (await self.embed([texts], **options))[0]
            return vectors
        return await self._run(self._embed_call(texts, options))

    async def embed_query(self, text: str, **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds a search query; returns shape (dim,)."""
        options.setdefault("input_type", "query")
        return await self.embed(text, **options)

    async def embed_documents(
        self, texts: Sequence[str], **options: Unpack[EmbedOptions]
    ) -> Vectors:
        """Embeds documents to search in; returns shape (n, dim)."""
        options.setdefault("input_type", "document")
        return await self.embed(list(texts), **options)

    async def embed_images(
        self, images: ImageInput | Sequence[ImageInput], **options: Unpack[ImageOptions]
    ) -> Vectors:
        """Embeds images; see `Client.embed_images`."""
        if isinstance(images, bytes | str | os.PathLike):
            vectors: Vectors = (await self.embed_images([images], **options))[0]
            return vectors
        call = await asyncio.to_thread(self._image_call, images, options)  # it may read files
        return await self._run(call)

    @overload
    async def embed_sparse(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, texts: str, **options: Unpack[SparseOptions]
    ) -> SparseVector: ...
    @overload
    async def embed_sparse(
        self, texts: Sequence[str], **options: Unpack[SparseOptions]
    ) -> list[SparseVector]: ...
    async def embed_sparse(self, texts: Any, **options: Unpack[SparseOptions]) -> Any:
        """Computes sparse vectors of texts; see `Client.embed_sparse`."""
        if isinstance(texts, str):
            return (await self.embed_sparse([texts], **options))[0]
        return await self._run(self._sparse_call(texts, options))

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[RerankResult]:
        """Ranks documents by their relevance to a query; see `Client.rerank`."""
        return await self._run(self._rerank_call(query, documents, top_n, options))

    @overload
    async def classify(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, texts: str, **options: Unpack[ClassifyOptions]
    ) -> list[LabelScore]: ...
    @overload
    async def classify(
        self, texts: Sequence[str], **options: Unpack[ClassifyOptions]
    ) -> list[list[LabelScore]]: ...
    async def classify(self, texts: Any, **options: Unpack[ClassifyOptions]) -> Any:
        """Classifies texts; see `Client.classify`."""
        if isinstance(texts, str):
            return (await self.classify([texts], **options))[0]
        return await self._run(self._classify_call(texts, options))

    async def health(self, timeout_s: float = 5.0, *, model: str | None = None) -> dict[str, Any]:
        """Returns the health of the service; see `Client.health`."""
        step = Send(get_request("/health", model or self.model), timeout_s)
        return base.parse_health(await self._transport.send(step))

    async def is_healthy(self, timeout_s: float = 5.0, *, model: str | None = None) -> bool:
        """Returns whether the service is reachable and can compute; see `Client.health`."""
        try:
            return (await self.health(timeout_s, model=model)).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    async def info(self, *, model: str | None = None) -> dict[str, Any]:
        """Returns what is served; see `Client.info`."""
        return await self._get(get_request("/info", model or self.model))

    async def models(self) -> list[str]:
        """Returns the names of the served models."""
        return base.parse_model_names(await self._get(base.MODELS_REQUEST))
