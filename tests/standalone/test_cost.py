"""The costs of replies add up to what the provider bills."""

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal

import httpx2
import pytest

from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.providers.fake_servers import (
    DIM,
    KEY,
    RATE_LIMITED,
    SERVER_ERROR,
    FakeServer,
    count_tokens,
    run_fake_server,
)

KEY_ENV = "FAKE_PROVIDER_KEY"
#: The list price of text-embedding-3-small.
USD_PER_TOKEN = Decimal("0.00000002")


@pytest.fixture
async def services(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[httpx2.AsyncClient, FakeServer]]:
    """A client of a service, and the provider of its only model."""
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tokens are those of the fake server
    with run_fake_server("openai") as server:
        provider = {"base_url": server.url, "api_key_env": KEY_ENV, "dimensions": DIM}
        model = {"name": "text-embedding-3-small", "provider": provider}
        config = AppConfig.parse({"models": [model], "cache": {"url": "none"}})
        service = StandaloneService(config, select_engines(config), EmbedServerSettings(), "test")
        await service.start()
        transport = httpx2.ASGITransport(service.app)
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                yield client, server
        finally:
            await service.stop()


async def test_costs_of_concurrent_requests_are_what_the_provider_bills(
    services: tuple[httpx2.AsyncClient, FakeServer],
) -> None:
    client, server = services
    rng = random.Random(19)
    texts = [" ".join(["word"] * rng.randint(1, 9)) + f" {i}" for i in range(40)]
    server.script.extend([RATE_LIMITED, SERVER_ERROR])  # of the first request, which is retried

    async def cost(number: int) -> Decimal:
        body = {"input": rng.choices(texts, k=rng.randint(1, 6))}
        headers = {"cache-control": "no-store"} if number % 9 == 0 else {}
        reply = await client.post("/v1/embeddings", json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        return Decimal(reply.headers["x-cost-usd"])

    costs = [
        await cost(-1),
        *await asyncio.gather(*map(cost, range(60))),
        *await asyncio.gather(*map(cost, range(60, 120))),
    ]
    succeeded = [*server.received][2:]
    billed = count_tokens(*(text for received in succeeded for text in received.texts))
    assert sum(costs) == billed * USD_PER_TOKEN
    assert 0 in costs
    rows = (await client.get("/cost")).json()
    assert Decimal(rows["total"]["cost_usd"]) == sum(costs)
    assert rows["total"]["requests"] == len(costs)
