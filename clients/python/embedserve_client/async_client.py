"""The client for programs on an event loop."""

import asyncio
import time
from collections.abc import Generator, Sequence
from typing import Any, Self, TypeVar, Unpack

from embedserve_client import base
from embedserve_client.base import BaseClient, How, Settings
from embedserve_client.errors import EmbedError
from embedserve_client.flow import HEALTH, Compute, embed
from embedserve_client.retry import Retry, Send, Wait, exchange
from embedserve_client.transport import AsyncTransport
from embedserve_client.vectors import Vectors, joined
from embedserve_client.wire import Reply, Request, read_object

T = TypeVar("T")


class AsyncClient(BaseClient):
    """`Client` for an event loop; cancelling a call ends its requests.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        vectors = await client.embed(["a text", "another"])
    """

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        """As `BaseClient`."""
        super().__init__(url, **settings)
        self._transport = AsyncTransport(self.url, self._headers, self._concurrency)

    async def embed(self, texts: str | Sequence[str], **how: Unpack[How]) -> Vectors:
        """As `Client.embed`."""
        if isinstance(texts, str):
            vectors: Vectors = (await self.embed([texts], **how))[0]
            return vectors
        parts, options, timeout_s = self._call(texts, how)
        if len(parts) == 1:
            return await self._drive(embed(parts[0], options, self._rules, timeout_s))
        found = dict[int, Vectors]()
        todo = iter(enumerate(parts))

        async def work() -> None:
            for place, part in todo:
                try:
                    found[place] = await self._drive(embed(part, options, self._rules, timeout_s))
                except EmbedError as error:
                    raise base.located(error, place * len(parts[0]), part) from error.__cause__

        tasks = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(parts)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return joined([found[place] for place in range(len(parts))])

    async def embed_query(self, text: str, **how: Unpack[How]) -> Vectors:
        """The vector of what is searched for, shape (dim,)."""
        how.setdefault("input_type", "query")
        return await self.embed(text, **how)

    async def embed_documents(self, texts: Sequence[str], **how: Unpack[How]) -> Vectors:
        """The vectors of what is searched, shape (n, dim)."""
        how.setdefault("input_type", "document")
        return await self.embed(list(texts), **how)

    async def health(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """As `Client.health`."""
        return base.health_of(await self._transport.send(Send(HEALTH, timeout_s)))

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the service is there and can embed."""
        try:
            return (await self.health(timeout_s)).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    async def info(self) -> dict[str, Any]:
        """What is served: model, dimensions, space, engine, versions."""
        return await self._ask(base.INFO)

    async def models(self) -> list[str]:
        """The names of what is served."""
        return base.model_names(await self._ask(base.MODELS))

    async def close(self) -> None:
        """Closes its connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def _ask(self, request: Request) -> dict[str, Any]:
        end = time.monotonic() + self.timeout_s
        return read_object(await self._drive(exchange(request, Retry(), end, time.monotonic)))

    async def _drive(self, flow: Generator[Any, Any, T]) -> T:
        """Does what a flow says, until it has what it is for."""
        answer: Any = None
        try:
            while True:
                match flow.send(answer):
                    case Wait(seconds):
                        await asyncio.sleep(seconds)
                        answer = None
                    case Compute(texts, options):
                        assert self.fallback is not None, "Nobody else computes. This is a bug."
                        model = self.fallback.model
                        answer = await asyncio.to_thread(model.embed, texts, options)
                    case step:
                        answer = await self._send(step)
        except StopIteration as stop:
            done: T = stop.value
            return done

    async def _send(self, step: Send) -> Reply | EmbedError:
        try:
            return await self._transport.send(step)
        except EmbedError as error:
            return error
