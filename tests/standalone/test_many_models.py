"""Thirty models in one process, of which four fit into memory."""

import asyncio
import random
import time
import weakref

import httpx2
import numpy as np
import pytest

from serve_app import standalone
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.engines.base import Engine
from serve_app.model_prep.engine_selection import EngineSelection, load_engine, select_engines
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server

MODELS, MAX_LOADED = 30, 4
CLIENTS, REQUESTS = 12, 20
CONFIG = AppConfig.parse(
    {
        "models": [{"name": f"m{i}", "source": f"hashing:{8 + i}"} for i in range(MODELS)],
        "max_loaded_models": MAX_LOADED,
        "cache": {"url": "none"},
    }
)


class Loads:
    """Loads engines slowly, and counts those that are in memory."""

    def __init__(self) -> None:
        self._alive = weakref.WeakSet[Engine]()
        self.count = 0
        self.max_alive = 0

    def __call__(self, selection: EngineSelection, threads: int) -> Engine:
        time.sleep(0.001)
        engine = load_engine(selection, threads=threads)
        self._alive.add(engine)
        self.count += 1
        self.max_alive = max(self.max_alive, len(self._alive))
        return engine


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads = Loads()
    monkeypatch.setattr(standalone, "load_engine", loads)
    return loads


async def test_thirty_models_answer_correctly_with_room_for_four(loads: Loads) -> None:
    selections = select_engines(CONFIG)
    engines = [load_engine(selection, threads=1) for selection in selections]
    service = StandaloneService(CONFIG, selections, EmbedServerSettings(l1_max_bytes=0), "test")
    with run_server(service.app, service.start, service.stop) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
            await asyncio.gather(*(send(client, engines, i) for i in range(CLIENTS)))
            loads_before = loads.count
            health = (await client.get("/health")).json()
            assert loads.count == loads_before  # a check loads no model
            replies = [
                await client.post("/v1/embeddings", json={"input": "a", "model": f"m{i}"})
                for i in range(MAX_LOADED + 1)
            ]
    assert loads.max_alive <= MAX_LOADED
    assert loads.count > MODELS  # some were loaded again
    assert {model["status"] for model in health["models"].values()} == {"ok"}
    assert any("load;dur=" in reply.headers["server-timing"] for reply in replies)


async def send(client: httpx2.AsyncClient, engines: list[Engine], seed: int) -> None:
    """Sends requests to random models, and checks each vector."""
    randomness = random.Random(seed)
    for number in range(REQUESTS):
        model, text = randomness.randrange(MODELS), f"client {seed} sends text {number}"
        reply = await client.post("/v1/embeddings", json={"input": text, "model": f"m{model}"})
        assert reply.status_code == 200, reply.text
        engine = engines[model]
        (expected,) = engine.run("embed", engine.tokenizer.encode([text]))
        actual = np.array(reply.json()["data"][0]["embedding"], np.float32)
        assert np.array_equal(actual, expected)
