"""The asynchronous client."""

import asyncio
import time
from collections.abc import Generator, Sequence
from typing import Any, Self, TypeVar, Unpack

from embedserve_client import base
from embedserve_client.base import BaseClient, ClientOptions, EmbedOptions
from embedserve_client.errors import EmbedError
from embedserve_client.flow import HEALTH_REQUEST, EmbedLocally, embed
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.transport import AsyncTransport
from embedserve_client.vectors import Vectors, concatenate
from embedserve_client.wire import Request, Response, parse_object

T = TypeVar("T")


class AsyncClient(BaseClient):
    """`Client` for asyncio. Cancelling a call cancels its requests.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        vectors = await client.embed(["a text", "another"])
    """

    def __init__(self, base_url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Creates a client; see `BaseClient`."""
        super().__init__(base_url, **options)
        self._transport = AsyncTransport(self.base_url, self._headers, self._concurrency)

    async def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds texts; see `Client.embed`."""
        if isinstance(texts, str):
            vectors: Vectors = (await self.embed([texts], **options))[0]
            return vectors
        batches, params, timeout_s = self._split(texts, options)
        if len(batches) == 1:
            return await self._drive(embed(batches[0], params, self._context, timeout_s))
        results = dict[int, Vectors]()
        pending = iter(enumerate(batches))

        async def work() -> None:
            for i, batch in pending:
                try:
                    results[i] = await self._drive(embed(batch, params, self._context, timeout_s))
                except EmbedError as error:
                    start = i * len(batches[0])
                    raise base.add_text_range(error, start, batch) from error.__cause__

        tasks = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(batches)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return concatenate([results[i] for i in range(len(batches))])

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

    async def health(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Returns the health of the service; see `Client.health`."""
        return base.parse_health(await self._transport.send(Send(HEALTH_REQUEST, timeout_s)))

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Returns whether the service is reachable and can embed."""
        try:
            return (await self.health(timeout_s)).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    async def info(self) -> dict[str, Any]:
        """Returns what is served: model, dimensions, space, engine, versions."""
        return await self._get(base.INFO_REQUEST)

    async def models(self) -> list[str]:
        """Returns the names of the served models."""
        return base.parse_model_names(await self._get(base.MODELS_REQUEST))

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _get(self, request: Request) -> dict[str, Any]:
        deadline = time.monotonic() + self.timeout_s
        flow = send_with_retries(request, RetryPolicy(), deadline, time.monotonic)
        return parse_object(await self._drive(flow))

    async def _drive(self, flow: Generator[Any, Any, T]) -> T:
        """Runs the steps of a flow and returns its result."""
        outcome: Any = None
        try:
            while True:
                match flow.send(outcome):
                    case Sleep(seconds):
                        await asyncio.sleep(seconds)
                        outcome = None
                    case EmbedLocally(texts, params):
                        assert self.fallback is not None, "EmbedLocally without a fallback. A bug."
                        model = self.fallback.model
                        outcome = await asyncio.to_thread(model.embed, texts, params)
                    case step:
                        outcome = await self._try_send(step)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _try_send(self, step: Send) -> Response | EmbedError:
        try:
            return await self._transport.send(step)
        except EmbedError as error:
            return error
