"""What asynchronous clients share: connections, and sending the requests of a call."""

import asyncio
import time
from collections.abc import Generator, Sequence
from typing import Any, Self, TypeVar, Unpack

from embedserve_client.base import BaseClient, Call, ClientOptions
from embedserve_client.errors import EmbedError
from embedserve_client.flow import EmbedLocally
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.transport import AsyncTransport
from embedserve_client.wire import Request, Response, parse_object

B = TypeVar("B", bound=Sequence[Any])
R = TypeVar("R")
T = TypeVar("T")


class AsyncBaseClient(BaseClient):
    """A client for asyncio, which sends the requests of its calls concurrently."""

    def __init__(self, base_url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Creates a client; see `BaseClient`."""
        super().__init__(base_url, **options)
        self._transport = AsyncTransport(self.base_url, self._headers, self._concurrency)

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

    async def _run(self, call: Call[B, R, T]) -> T:
        """Sends the requests of a call; the first failure cancels the others."""
        if len(call.batches) == 1:
            return call.join([await self._drive(call.flow(call.batches[0]))])
        results = dict[int, R]()
        pending = iter(range(len(call.batches)))

        async def work() -> None:
            for i in pending:
                try:
                    results[i] = await self._drive(call.flow(call.batches[i]))
                except EmbedError as error:
                    raise call.add_range(error, i) from error.__cause__

        tasks = [
            asyncio.create_task(work()) for _ in range(min(self._concurrency, len(call.batches)))
        ]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return call.join([results[i] for i in range(len(call.batches))])

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
