"""A service whose models a provider runs, in one process, against a fake provider."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest

from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.providers import fake_servers
from tests.providers.fake_servers import (
    DIM,
    KEY,
    Behavior,
    FakeServer,
    fake_vectors,
    rate_limited,
    run_fake_server,
)

KEY_ENV = "FAKE_PROVIDER_KEY"
LIMIT_S = 30


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv(KEY_ENV, KEY)
    with run_fake_server("openai") as server:
        yield server


def remote_model(server: FakeServer, **settings: Any) -> dict[str, Any]:
    provider = {"base_url": server.url, "api_key_env": KEY_ENV, "dimensions": DIM, **settings}
    return {"name": "remote", "source": "openai:text-embedding-3-small", "provider": provider}


@asynccontextmanager
async def running(
    *models: dict[str, Any], **settings: Any
) -> AsyncIterator[tuple[httpx2.AsyncClient, StandaloneService]]:
    """A client of a service with these models."""
    config = AppConfig.parse({"models": models, "cache": {"url": "none"}})
    service = StandaloneService(
        config, select_engines(config), EmbedServerSettings(**settings), "test"
    )
    await service.start()
    transport = httpx2.ASGITransport(service.app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, service
    finally:
        await service.stop()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(remote_model(server)) as (client, _):
        yield client


async def embed(client: httpx2.AsyncClient, *texts: str, **headers: str) -> httpx2.Response:
    return await client.post("/v1/embeddings", json={"input": texts}, headers=headers)


async def metric(client: httpx2.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(map(float, re.findall(rf"^ray_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


async def test_vectors_of_a_provider_are_cached(
    client: httpx2.AsyncClient, server: FakeServer
) -> None:
    replies = [await embed(client, "one text", "and 北京", "one text") for _ in range(2)]
    for reply in replies:
        vectors = [item["embedding"] for item in reply.json()["data"]]
        expected = fake_vectors("one text", "and 北京", "one text")
        assert np.array_equal(np.array(vectors, np.float32), expected)
    assert [reply.headers["x-cache"] for reply in replies] == [
        "hits=0; misses=3",
        "hits=3; misses=0; tier=l1",
    ]
    assert [received.texts for received in server.received] == [["one text", "and 北京"]]
    assert await metric(client, "embedserve_provider_texts_total") == 2
    assert await metric(client, "embedserve_provider_tokens_total") == 4


async def test_a_local_model_and_a_provider_share_a_service(server: FakeServer) -> None:
    local = {"name": "local", "source": "hashing:16"}
    async with running(local, remote_model(server)) as (client, _):
        for model, dim in (("local", 16), ("remote", DIM)):
            reply = await client.post("/v1/embeddings", json={"input": "a", "model": model})
            assert len(reply.json()["data"][0]["embedding"]) == dim
        assert (await embed(client, "a")).json()["model"] == "local"
        metrics = (await client.get("/metrics")).text
    queues = re.findall(r"^ray_embedserve_queued_tokens{.*}", metrics, re.MULTILINE)
    assert {'model="local"' in queue for queue in queues} == {True, False}
    assert len(server.received) == 1


async def test_health_checks_cost_nothing(client: httpx2.AsyncClient, server: FakeServer) -> None:
    assert (await client.get("/health")).json()["status"] == "ok"
    info = (await client.get("/info")).json()
    assert (info["engine"], info["device"]) == ("openai", "remote")
    assert server.received == []


async def test_a_failing_provider_is_reported(
    client: httpx2.AsyncClient, server: FakeServer
) -> None:
    server.script.extend([fake_servers.GARBAGE] * 5)
    for i in range(5):
        assert (await embed(client, f"{i}")).status_code == 502
    reply = await embed(client, "next")
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) > 0
    assert len(server.received) == 5
    health = await client.get("/health")
    assert health.status_code == 503
    assert "remote" in health.json()["reason"]
    assert await metric(client, "embedserve_provider_up") == 0
    for name in ("queued_tokens", "provider_calls_in_flight"):
        assert await metric(client, f"embedserve_{name}") == 0


async def test_nothing_wrong_is_cached(client: httpx2.AsyncClient, server: FakeServer) -> None:
    for behavior in (fake_servers.HALF_LIST, fake_servers.NAN, fake_servers.TOO_WIDE):
        server.script.append(behavior)
        assert (await embed(client, "a", "b")).status_code == 502
    reply = await embed(client, "a", "b")
    vectors = [item["embedding"] for item in reply.json()["data"]]
    assert np.array_equal(np.array(vectors, np.float32), fake_vectors("a", "b"))
    assert reply.headers["x-cache"] == "hits=0; misses=2"


@pytest.mark.parametrize(
    "behavior",
    [
        *(fake_servers.SERVER_ERROR, fake_servers.CLOSED, fake_servers.CUT_OFF),
        *(fake_servers.HANGS, fake_servers.SLOW_BYTES, rate_limited(retry_after_ms="20")),
    ],
    ids=["500", "closed", "cut off", "hangs", "slow bytes", "429"],
)
async def test_failures_are_retried(
    behavior: Behavior, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.script.append(behavior)
    async with running(remote_model(server, timeout_s=0.3)) as (client, _):
        reply = await embed(client, "a")
        vectors = [item["embedding"] for item in reply.json()["data"]]
        assert np.array_equal(np.array(vectors, np.float32), fake_vectors("a"))
        assert await metric(client, "embedserve_provider_retries_total") == 1
    assert len(server.received) == 2
    assert KEY not in caplog.text


async def test_the_second_region_answers_while_the_first_one_fails(server: FakeServer) -> None:
    with run_fake_server("openai") as second:
        first = remote_model(server, max_retries=0) | {"fallback": ["second"]}
        async with running(first, remote_model(second) | {"name": "second"}) as (client, _):
            server.script.extend([fake_servers.SERVER_ERROR] * 20)
            for i in range(8):
                assert (await embed(client, f"text {i}")).status_code == 200
            # Both have one space, and so one cache.
            reply = await client.post("/v1/embeddings", json={"input": "text 0", "model": "second"})
    assert reply.headers["x-cache"].startswith("hits=1")
    assert len(server.received) == 5  # then its breaker opened
    assert len(second.received) == 8


async def test_a_rate_limit_beyond_the_deadline_is_a_429(
    client: httpx2.AsyncClient, server: FakeServer
) -> None:
    server.script.append(rate_limited(retry_after="60"))
    reply = await embed(client, "a", **{"x-request-timeout-s": "10"})
    assert reply.status_code == 429
    assert 60 <= int(reply.headers["retry-after"]) <= 62
    assert len(server.received) == 1


async def test_a_hanging_provider_keeps_the_deadline(
    client: httpx2.AsyncClient, server: FakeServer
) -> None:
    server.script.append(fake_servers.HANGS)
    assert (await embed(client, "a", **{"x-request-timeout-s": "0.2"})).status_code == 504


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [[1, 2, 3]]}),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 2}),
        ("/embed", {"inputs": "a", "truncate": True, "truncation_direction": "left"}),
        ("/tokenize", {"inputs": "a"}),
        ("/decode", {"ids": [1]}),
    ],
)
async def test_what_only_a_tokenizer_can_do_is_refused(
    client: httpx2.AsyncClient, server: FakeServer, path: str, body: dict[str, Any]
) -> None:
    reply = await client.post(path, json=body)
    assert reply.status_code in (400, 424), reply.text
    assert "provider" in reply.text
    assert server.received == []


async def test_texts_of_concurrent_requests_share_calls(server: FakeServer) -> None:
    async with running(remote_model(server, max_concurrent_calls=1)) as (client, _):
        replies = await asyncio.gather(*(embed(client, f"text {i}") for i in range(40)))
    assert {reply.status_code for reply in replies} == {200}
    assert len(server.received) <= 5


async def test_requests_in_flight_fail_when_the_service_stops(server: FakeServer) -> None:
    server.script.append(fake_servers.HANGS)
    async with running(remote_model(server)) as (client, service):
        request = asyncio.create_task(embed(client, "a"))
        async with asyncio.timeout(LIMIT_S):
            while not server.received:
                await asyncio.sleep(0.01)
            await service.stop()
            assert (await request).status_code == 503


def test_a_service_without_local_models_loads_no_engine() -> None:
    code = """
import sys
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
config = AppConfig.parse({
    "model": {"name": "m", "source": "openai:text-embedding-3-small"}, "cache": {"url": "none"}
})
StandaloneService(config, select_engines(config), EmbedServerSettings(), "test")
print(*{"torch", "openvino", "tokenizers", "transformers"} & {*sys.modules})
"""
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.strip() == ""
