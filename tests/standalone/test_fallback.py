"""A standalone service whose first engine fails: the next one of the same space answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import numpy as np
import pytest

from serve_app import standalone
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.engines.base import Engine, ModelInput, Rows
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.model_prep.engine_selection import EngineSelection, select_engines
from serve_app.standalone import StandaloneService
from serve_app.tasks import Task
from tests.providers.fake_servers import (
    DIM,
    GARBAGE,
    KEY,
    SERVER_ERROR,
    UNAUTHORIZED,
    Behavior,
    fake_vectors,
    rate_limited,
    run_fake_server,
)

#: Two engines of one space, and one of another.
CONFIG = AppConfig.parse(
    {
        "models": [
            {
                "name": "first",
                "source": "hashing:16",
                "fallback": ["second", "small"],
                "allow_space_change": True,
            },
            {"name": "second", "source": "hashing:16"},
            {"name": "small", "source": "hashing:8"},
        ],
        "cache": {"url": "none"},
    }
)
SELECTIONS = select_engines(CONFIG)


class BreakableEngine:
    """A hashing engine that counts its texts and can be broken."""

    def __init__(self, engine: Engine) -> None:
        self.info, self.tasks, self.streams = engine.info, engine.tasks, engine.streams
        self.tokenizer = engine.tokenizer
        self.is_broken = False
        self.texts = 0
        self._engine = engine

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        if self.is_broken:
            raise RuntimeError("out of memory")
        self.texts += len(batch)
        return self._engine.run(task, batch)


class Running:
    """The service and its engines, by the names of their models."""

    def __init__(self, client: httpx2.AsyncClient, engines: dict[str, BreakableEngine]) -> None:
        self.client = client
        self.engines = engines

    async def embed(self, *texts: str, model: str = "first") -> httpx2.Response:
        return await self.client.post("/v1/embeddings", json={"model": model, "input": texts})

    async def health(self) -> dict[str, Any]:
        health: dict[str, Any] = (await self.client.get("/health")).json()
        return health


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    engines = dict[str, BreakableEngine]()

    def load(selection: EngineSelection, *, threads: int) -> BreakableEngine:
        engine = BreakableEngine(HashingEngine(selection.spec))
        return engines.setdefault(selection.spec.name, engine)

    monkeypatch.setattr(standalone, "load_engine", load)
    service = StandaloneService(CONFIG, SELECTIONS, EmbedServerSettings(), "fallback")
    await service.start()
    for engine in engines.values():
        engine.texts = 0  # the warm-up
    transport = httpx2.ASGITransport(service.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Running(client, engines)
    await service.stop()


def vectors(reply: httpx2.Response) -> Any:
    assert reply.status_code == 200, reply.text
    return np.array([item["embedding"] for item in reply.json()["data"]])


async def test_the_second_engine_answers_with_the_same_bits(running: Running) -> None:
    expected = vectors(await running.embed("a text", "another"))
    running.engines["first"].is_broken = True
    reply = await running.embed("a text", "another", "one more")
    assert np.array_equal(vectors(reply)[:2], expected)
    # Two were cached. The second model shares their cache, and computed only the third one.
    assert [engine.texts for engine in running.engines.values()] == [2, 1, 0]
    assert reply.json()["model"] == "first"
    assert reply.headers["x-embedding-space"] == SELECTIONS[0].spec.space_id
    reply = await running.embed("one more", "another", model="second")
    assert reply.headers["x-cache"] == "hits=2; misses=0; tier=l1"
    assert reply.json()["model"] == "second"
    metrics = (await running.client.get("/metrics")).text
    assert 'embedserve_fallback_texts_total{answered_by="second",model="first"} 1.0' in metrics


async def test_then_a_model_of_another_space_answers_and_says_so(running: Running) -> None:
    running.engines["first"].is_broken = running.engines["second"].is_broken = True
    reply = await running.embed("a text")
    assert vectors(reply).shape == (1, 8)
    assert reply.json()["model"] == reply.headers["x-embedding-model"] == "small"
    assert reply.headers["x-embedding-space"] == SELECTIONS[2].spec.space_id
    running.engines["small"].is_broken = True
    assert (await running.embed("another")).status_code == 500


async def test_health_says_that_the_fallback_answers(running: Running) -> None:
    assert (await running.health())["fallbacks"]["first"]["status"] == "ok"
    running.engines["first"].is_broken = True
    for i in range(5):
        await running.embed(f"text {i}")
    health = await running.health()
    assert (health["status"], health["fallbacks"]["first"]["status"]) == ("degraded", "failing")
    running.engines["first"].is_broken = False
    async with asyncio.timeout(20):
        while (await running.health())["fallbacks"]["first"]["status"] != "ok":
            await asyncio.sleep(0.1)
            await running.embed(f"a text at {time.monotonic()}")


async def test_a_model_without_a_fallback_fails(running: Running) -> None:
    running.engines["second"].is_broken = True
    assert (await running.embed("a text", model="second")).status_code == 500


@pytest.mark.parametrize(
    "behavior",
    [SERVER_ERROR, UNAUTHORIZED, GARBAGE, rate_limited(retry_after="60")],
    ids=["500", "401", "garbage", "429"],
)
async def test_the_second_region_of_a_provider_answers_with_the_vectors_of_the_first(
    behavior: Behavior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PROVIDER_KEY", KEY)
    with run_fake_server("azure") as north, run_fake_server("azure") as south:
        model, *regions = "text-embedding-3-small", north, south
        provider = {"api_key_env": "FAKE_PROVIDER_KEY", "dimensions": DIM, "max_retries": 0}
        entries = [
            {
                "name": name,
                "source": f"azure:{model}",
                "provider": provider | {"base_url": region.url, "model": model},
            }
            for name, region in zip(("north", "south"), regions, strict=True)
        ]
        entries[0]["fallback"] = ["south"]
        config = AppConfig.parse({"models": entries, "cache": {"url": "none"}})
        north.script.extend([behavior] * 20)
        service = StandaloneService(
            config, select_engines(config), EmbedServerSettings(), "regions"
        )
        await service.start()
        transport = httpx2.ASGITransport(service.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            for i in range(10):  # until the breaker opens, and after
                body = {"model": "north", "input": f"text {i}"}
                reply = await client.post("/v1/embeddings", json=body)
                expected = fake_vectors(f"text {i}")
                assert np.array_equal(vectors(reply).astype(np.float32), expected)
                assert reply.json()["model"] == "north"
        await service.stop()
    assert len(south.received) == 10
    assert 1 <= len(north.received) < 10
