"""Monthly budgets of API keys, over HTTP."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import httpx2
import pytest

from serve_app.access.budget import next_month
from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.errors import BudgetExceeded
from serve_app.meter import Meter
from serve_app.metrics import KEY_REQUESTS
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

#: A token costs a tenth of a dollar, so the example text costs some of them.
PAID = replace(SPEC, name="paid", aliases=(), nano_usd_per_1k_tokens=100 * 10**9)
FREE = replace(SPEC, name="free", aliases=())
SECRETS = {name: f"es-{name}-0123456789" for name in ("rich", "poor", "none", "other")}
BUDGETS = {"rich": "1000", "poor": "0.15", "none": "0", "other": None}


@pytest.fixture
async def entrance() -> AsyncIterator[Entrance]:
    entrance = Entrance(MemoryQuotaStore(), Meter())
    keys = tuple(
        ApiKey.model_validate(
            {
                "name": name,
                "sha256": hashlib.sha256(secret.encode()).hexdigest(),
                "max_usd_per_month": BUDGETS[name],
            }
        )
        for name, secret in SECRETS.items()
    )
    entrance.apply(AccessSettings(keys=keys))
    yield entrance
    await entrance.close()


@pytest.fixture
async def client(entrance: Entrance) -> AsyncIterator[httpx2.AsyncClient]:
    meter = Meter()
    services = [
        EmbedService(spec, FakeBackend(), IngressSettings(), meter.for_model(spec.name))
        for spec in (PAID, FREE)
    ]
    transport = httpx2.ASGITransport(create_app(Catalog(services), entrance))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def embed(
    client: httpx2.AsyncClient, key: str, model: str = "paid", path: str = "/v1/embeddings"
) -> httpx2.Response:
    headers = {"authorization": f"Bearer {SECRETS[key]}"}
    body = {"input": "a text", "inputs": "a text", "model": model}
    return await client.post(path, json=body, headers=headers)


async def test_each_reply_says_what_is_left(client: httpx2.AsyncClient) -> None:
    reply = await embed(client, "rich")
    assert reply.status_code == 200
    cost = Decimal(reply.headers["x-cost-usd"])
    assert cost > 0
    assert reply.headers["x-budget-limit-usd"] == "1000.000000000"
    assert Decimal(reply.headers["x-budget-remaining-usd"]) == 1000 - cost
    reply = await embed(client, "rich")
    assert Decimal(reply.headers["x-budget-remaining-usd"]) == 1000 - 2 * cost
    for reply in (
        await embed(client, "rich", "free"),
        await embed(client, "rich", "unknown"),
        await client.get("/info", headers={"x-api-key": SECRETS["rich"]}),
    ):
        assert Decimal(reply.headers["x-budget-remaining-usd"]) == 1000 - 2 * cost
    assert "x-budget-limit-usd" not in (await embed(client, "other")).headers


async def test_a_key_without_budget_left_uses_free_models_only(
    client: httpx2.AsyncClient, entrance: Entrance
) -> None:
    replies = [await embed(client, "poor") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 429, 429]
    refusal = replies[-1]
    error = refusal.json()["error"]
    assert error["type"] == error["code"] == "insufficient_quota"
    cost = replies[0].headers["x-cost-usd"]
    assert f"The API key 'poor' has used {cost} of its 0.150000000 USD" in error["message"]
    assert refusal.headers["x-budget-remaining-usd"] == "0.000000000"
    now = datetime.now(UTC)
    remaining_s = (next_month(now) - now).total_seconds()
    assert abs(int(refusal.headers["retry-after"]) - remaining_s) < 60
    assert (await embed(client, "poor", "free")).status_code == 200
    assert (await embed(client, "rich")).status_code == 200
    assert (await embed(client, "none")).status_code == 429
    assert (await embed(client, "none", "free")).status_code == 200
    assert [row.key for row in await entrance.ledger.rows()] == ["poor", "rich"]


async def test_a_refusal_is_in_the_words_of_the_dialect(client: httpx2.AsyncClient) -> None:
    reply = await embed(client, "none", path="/embed")
    assert reply.status_code == 429
    assert reply.json()["error_type"] == "Overloaded"


def test_refused_requests_are_counted() -> None:
    meter = Meter()
    key = ApiKey(name="none", sha256="0" * 64, max_usd_per_month=Decimal(0))
    with pytest.raises(BudgetExceeded):
        Entrance(MemoryQuotaStore(), meter).check_budget(key, "paid")
    assert meter.value(KEY_REQUESTS, "none", "insufficient_quota", "paid") == 1


async def test_a_key_sees_its_own_costs_only(client: httpx2.AsyncClient) -> None:
    for key in ("rich", "other"):
        await embed(client, key)
    reply = await client.get("/cost", headers={"x-api-key": SECRETS["other"]})
    (row,) = reply.json()["rows"]
    assert (row["key"], row["model"], row["requests"]) == ("other", "paid", 1)
    assert (await client.get("/cost")).status_code == 401


async def test_without_keys_everyone_sees_all_costs() -> None:
    entrance = Entrance(MemoryQuotaStore())
    app = create_app(Catalog([EmbedService(PAID, FakeBackend(), IngressSettings())]), entrance)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://test"
    ) as client:
        reply = await client.post("/v1/embeddings", json={"input": "a text"})
        costs = (await client.get("/cost")).json()
    assert [row["key"] for row in costs["rows"]] == [""]
    assert costs["total"]["cost_usd"] == reply.headers["x-cost-usd"]
