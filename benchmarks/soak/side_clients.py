"""Clients next to the load: they scrape, watch, send what is not valid, and leave early."""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Self

import httpx2

from ..faults.apis import APIS, MODEL

_SCRAPE_S, _BAD_S, _LEAVE_S, _STATUS_S = 10.0, 2.0, 3.0, 15.0
_WATCHERS = 2
_TIMEOUT_S = 30.0
_JOIN_S = 15.0
#: A client that leaves waits so long after its request.
_PATIENCE_S = (0.0, 0.01, 0.03, 0.1)
_STATUS_PATHS = ("/health", "/info", "/v1/models", "/autoscaling", "/openapi.json")
_CLIENT_ERRORS = range(400, 500)

#: Requests that are not valid: path, body.
BAD_REQUESTS: tuple[tuple[str, bytes], ...] = (
    ("/v1/embeddings", b'{"input": ['),
    ("/v1/embeddings", b'{"model": "nobody", "input": "text"}'),
    ("/v1/embeddings", b'{"input": [1.5, {}]}'),
    ("/embed", b'{"inputs": []}'),
    ("/embed", b'{"texts": "' + b"\xff" + b'"}'),
    ("/v2/embed", b'{"texts": ["text"], "input_type": 7}'),
    ("/api/embed", b"[]"),
    ("/v1/nothing", b"{}"),
)


class SideClients:
    """Runs the clients in a thread, until the end of the block, and counts their replies."""

    def __init__(self, url: str, api_key: str) -> None:
        """Clients that haven't started.

        Args:
            url: of the service.
            api_key: a key of the service.
        """
        self.expected: Counter[str] = Counter()  #: replies as they should be, by client
        self.unexpected: Counter[str] = Counter()  #: others, by client and what happened
        self._url, self._api_key = url, api_key
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run_loop, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join(_TIMEOUT_S + _JOIN_S)

    def _run_loop(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        headers = {"authorization": f"Bearer {self._api_key}"}
        async with httpx2.AsyncClient(
            base_url=self._url, headers=headers, timeout=_TIMEOUT_S
        ) as client:
            bad, paths = itertools.cycle(BAD_REQUESTS), itertools.cycle(_STATUS_PATHS)
            patience = itertools.cycle(_PATIENCE_S)
            numbers = itertools.count()

            async def send_bad() -> bool:
                path, body = next(bad)
                content = {"content-type": "application/json"}
                response = await client.post(path, content=body, headers=content)
                return response.status_code in _CLIENT_ERRORS

            async def get(path: str) -> bool:
                return (await client.get(path)).status_code == httpx2.codes.OK

            async def leave() -> bool:
                await self._leave(client, next(numbers), next(patience))
                return True

            tasks = [
                asyncio.create_task(self._repeat("scrapes", _SCRAPE_S, lambda: get("/metrics"))),
                asyncio.create_task(self._repeat("status", _STATUS_S, lambda: get(next(paths)))),
                asyncio.create_task(self._repeat("bad requests", _BAD_S, send_bad)),
                asyncio.create_task(self._repeat("disconnects", _LEAVE_S, leave)),
                *(asyncio.create_task(self._watch(client)) for _ in range(_WATCHERS)),
            ]
            await asyncio.to_thread(self._stopped.wait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(
        self, name: str, interval_s: float, send: Callable[[], Awaitable[bool]]
    ) -> None:
        while True:
            try:
                if await send():
                    self.expected[name] += 1
                else:
                    self.unexpected[f"{name}: another status"] += 1
            except httpx2.HTTPError as error:
                self.unexpected[f"{name}: {type(error).__name__}"] += 1
            await asyncio.sleep(interval_s)

    async def _watch(self, client: httpx2.AsyncClient) -> None:
        """Reads the live stream, and opens it again when the service ends it."""
        while True:
            try:
                async with client.stream("GET", "/live") as response:
                    if response.status_code != httpx2.codes.OK:
                        self.unexpected[f"live: status {response.status_code}"] += 1
                    async for _ in response.aiter_lines():
                        self.expected["live lines"] += 1
                self.expected["live streams"] += 1
            except httpx2.HTTPError as error:
                self.unexpected[f"live: {type(error).__name__}"] += 1
            await asyncio.sleep(1.0)

    async def _leave(self, client: httpx2.AsyncClient, number: int, patience_s: float) -> None:
        """Sends new texts and closes the connection without waiting for the reply."""
        texts = [f"leaving {number} {i} " + "word " * 30 for i in range(8)]
        request = client.build_request("POST", APIS[0].path, json={"model": MODEL, "input": texts})
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        url = client.base_url
        _, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode())
            writer.write(await request.aread())
            await writer.drain()
            await asyncio.sleep(patience_s)
        finally:
            writer.transport.abort()
