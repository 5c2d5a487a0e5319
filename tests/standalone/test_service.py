"""The standalone service in this process, with an engine that tests can hold."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest

from serve_app import standalone
from serve_app.config import AppConfig, CacheConfig, EmbedServerSettings, ModelConfig
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.engines.static_model import save_static_model
from tests.fakes import DIM, FakeEngine, fake_vector

#: Far more than any test needs.
LIMIT_S = 30
DRAIN_TIMEOUT_S = 1.0
SETTINGS = EmbedServerSettings(health_max_age_s=0.05, health_timeout_s=0.2)


class Running:
    """The service, its engine and its clients."""

    def __init__(self, engine: FakeEngine, url: str, task: "asyncio.Task[None]") -> None:
        self.engine = engine
        self.url = url
        self.task = task
        self.client = httpx2.AsyncClient(base_url=url, timeout=LIMIT_S)

    async def embed(self, *texts: str) -> httpx2.Response:
        return await self.client.post("/v1/embeddings", json={"input": texts})

    async def start_embedding(self, text: str) -> "asyncio.Task[httpx2.Response]":
        """Returns a request whose text the held engine is computing."""
        reply = asyncio.create_task(self.embed(text))
        await until(lambda: [text] in self.engine.batches)
        return reply

    async def metric(self, name: str) -> float:
        """Returns the sum of a metric over its tags."""
        text = (await self.client.get("/metrics")).text
        return sum(map(float, re.findall(rf"^ray_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def until_refused(url: httpx2.URL) -> None:
    async with asyncio.timeout(LIMIT_S):
        with contextlib.suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_connection(url.host, url.port)
                writer.close()
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(service: StandaloneService, engine: FakeEngine) -> AsyncIterator[Running]:
    """Runs a service on a free port."""
    ready = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(
            standalone.run(service, listener, drain_timeout_s=DRAIN_TIMEOUT_S, on_ready=ready.set)
        )
        await ready.wait()
        running = Running(engine, url, task)
        try:
            async with running.client:
                yield running
        finally:
            engine.release()
            if not task.done():
                running.stop()
            await task


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    engine = FakeEngine()
    monkeypatch.setattr(standalone, "load_engine", lambda selection, threads: engine)
    model = ModelConfig(name="words", source=f"hashing:{DIM}")
    config = AppConfig(model=model, cache=CacheConfig.parse({"url": "none"}))
    service = StandaloneService(config, select_engines(config), SETTINGS, name="test")
    engine.batches.clear()  # the warm-up
    async with serving(service, engine) as running:
        yield running


async def leave(running: Running, body: bytes, randomness: random.Random) -> None:
    """Sends a request in segments with pauses, and closes the connection at a random moment."""
    url = httpx2.URL(running.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    header = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    writer.write(header + b"content-length: %d\r\n\r\n" % len(body))
    middle = randomness.randrange(len(body))
    for segment in (body[:middle], body[middle:]):
        await asyncio.sleep(randomness.random() * 0.05)
        writer.write(segment)
        await writer.drain()
    await asyncio.sleep(randomness.random() * 0.1)
    writer.close()


async def test_nothing_is_computed_for_clients_that_left(running: Running) -> None:
    randomness = random.Random(1)
    running.engine.hold()
    first = await running.start_embedding("first")
    bodies = [
        json.dumps({"input": [f"{n} {i}" for i in range(randomness.choice([1, 8, 500]))]}).encode()
        for n in range(60)
    ]
    await asyncio.gather(*(leave(running, body, randomness) for body in bodies))
    async with asyncio.timeout(LIMIT_S):
        while await running.metric("embedserve_queued_tokens") > len("first"):
            await asyncio.sleep(0.01)
    running.engine.release()
    assert [(await first).status_code, (await running.embed("last")).status_code] == [200, 200]
    assert running.engine.batches == [["first"], ["last"]]
    assert await running.metric("embedserve_batch_size_texts_sum") == 2
    assert await running.metric("embedserve_texts_total") == 2


async def test_a_client_that_left_does_not_affect_another_with_the_same_text(
    running: Running,
) -> None:
    running.engine.hold()
    first = await running.start_embedding("first")
    body = json.dumps({"input": ["shared", "alone"]}).encode()
    leaving = asyncio.create_task(leave(running, body, random.Random(1)))
    await asyncio.sleep(0.05)
    staying = asyncio.create_task(running.embed("shared"))
    await leaving
    running.engine.release()
    (item,) = (await staying).json()["data"]
    assert np.array_equal(np.array(item["embedding"], np.float32), fake_vector("shared"))
    await first
    assert [text for batch in running.engine.batches for text in batch].count("shared") == 1


async def test_health_reports_an_engine_that_hangs(running: Running) -> None:
    running.engine.hold()
    first = await running.start_embedding("first")
    health = await running.client.get("/health")
    assert health.status_code == 503
    assert health.json()["reason"] == "The engine returned no vector within 0.2 s."
    assert (await running.client.get("/v1/health/live")).status_code == 200
    running.engine.release()
    await first
    assert (await running.client.get("/health")).status_code == 200


async def test_a_signal_lets_requests_in_flight_end(running: Running) -> None:
    running.engine.hold()
    first = await running.start_embedding("first")
    running.stop()
    await until_refused(httpx2.URL(running.url))
    assert not running.task.done()
    running.engine.release()
    assert (await first).status_code == 200
    await running.task


async def test_a_request_that_crosses_the_end_on_an_idle_connection_is_answered(
    running: Running,
) -> None:
    assert (await running.embed("a")).headers.get("connection") is None
    running.stop()
    await until_refused(httpx2.URL(running.url))
    last = await running.embed("b")  # on the connection of the first one
    assert (last.status_code, last.headers["connection"]) == (200, "close")
    await running.task


async def test_idle_connections_and_incomplete_headers_do_not_keep_the_service(
    running: Running,
) -> None:
    url = httpx2.URL(running.url)
    connections = [await asyncio.open_connection(url.host, url.port) for _ in range(2)]
    connections[0][1].write(b"POST /v1/emb")
    assert (await running.embed("a")).status_code == 200
    running.stop()
    async with asyncio.timeout(LIMIT_S):
        await running.task
    for reader, writer in connections:
        assert b"200" not in await reader.read()
        writer.close()


async def test_requests_that_outlast_the_drain_timeout_are_cut_off(running: Running) -> None:
    running.engine.hold()
    first = await running.start_embedding("first")
    running.stop()
    await asyncio.wait([first], timeout=LIMIT_S)
    running.engine.release()
    if first.exception() is None:
        assert first.result().status_code >= 500
    else:
        assert isinstance(first.exception(), httpx2.TransportError)
    await running.task


async def test_the_port_reuses_connections_and_replies_name_no_server(running: Running) -> None:
    replies = [await running.embed("a"), await running.client.get("/health")]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert ["server" in reply.headers for reply in replies] == [False, False]
    assert replies[0].headers["x-cache"] == "hits=0; misses=1"
    assert (await running.embed("a")).headers["x-cache"] == "hits=1; misses=0; tier=l1"


async def test_metrics_have_cpu_time_and_memory_of_the_process(running: Running) -> None:
    memory = await running.metric("embedserve_process_memory_bytes")
    assert 10e6 < memory < 100e9
    before = await running.metric("embedserve_process_cpu_seconds")
    assert before > 0
    await asyncio.gather(*(running.embed(f"text {i}") for i in range(50)))
    assert await running.metric("embedserve_process_cpu_seconds") > before


async def test_a_static_model_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = ModelConfig(name="static", source=f"path:{save_static_model(tmp_path / 'model')}")
    config = AppConfig(model=model, cache=CacheConfig.parse({"url": "none"}))
    service = StandaloneService(config, select_engines(config), SETTINGS, name="test")
    async with serving(service, FakeEngine()) as running:
        vectors = [
            np.array(item["embedding"], np.float32)
            for item in (await running.embed("two words", " ", "words two")).json()["data"]
        ]
        assert np.array_equal(vectors[0], vectors[2])  # the mean doesn't depend on the order
        assert not vectors[1].any()  # a blank has no tokens
        info = (await running.client.get("/info")).json()
        assert (info["engine"], info["device"], info["precision"]) == ("torch", "cpu", "fp32")
        assert len(info["refused"]) == 2
        tokens = await running.client.post("/embed_all", json={"inputs": "a"})
        assert tokens.status_code == 424
        assert "'static' doesn't support `embed_tokens`" in tokens.json()["error"]
