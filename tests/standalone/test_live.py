"""`GET /live` over sockets: clients that leave, and a service that stops."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack

import httpx2
import pytest

from serve_app import standalone
from serve_app.live.live_feed import MAX_LISTENERS
from tests.standalone.hashing_service import hashing_service, run_hashing_service

LIMIT_S = 30
#: Longer than the limit of the test: a stream that holds up the stop would exceed that.
DRAIN_TIMEOUT_S = 10 * LIMIT_S


async def test_a_client_that_disconnects_makes_room_for_another() -> None:
    with run_hashing_service() as url:
        async with (
            asyncio.timeout(LIMIT_S),
            httpx2.AsyncClient(
                base_url=url, timeout=30, limits=httpx2.Limits(max_connections=None)
            ) as client,
            AsyncExitStack() as others,
        ):
            leaving = AsyncExitStack()
            for number in range(MAX_LISTENERS):
                stack = others if number else leaving
                response = await stack.enter_async_context(client.stream("GET", "/live"))
                assert response.status_code == 200
            assert (await client.get("/live")).status_code == 429
            await leaving.aclose()
            # `once` listens too, for as long as it takes.
            while (reply := await client.get("/live?once=true&interval_s=0.5")).status_code == 429:
                await asyncio.sleep(0.05)
            assert reply.status_code == 200


@pytest.mark.skipif(sys.platform == "win32", reason="event loops of Windows handle no signals")
async def test_a_stop_ends_streams_and_does_not_wait_for_them() -> None:
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = asyncio.create_task(
            standalone.run(
                hashing_service(), listener, drain_timeout_s=DRAIN_TIMEOUT_S, on_ready=ready.set
            )
        )
        async with asyncio.timeout(LIMIT_S):
            await ready.wait()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/live?interval_s=10"
            async with (
                httpx2.AsyncClient(timeout=30) as client,
                client.stream("GET", url) as response,
            ):
                lines = response.aiter_lines()
                assert (await anext(lines)).startswith("data: ")
                os.kill(os.getpid(), signal.SIGTERM)
                assert [line async for line in lines if line] == []
            await service
