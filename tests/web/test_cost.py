"""Every route that runs a model reports what the request cost, and charges it once."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from serve_app.access.entrance import Entrance
from serve_app.access.keys import digest
from serve_app.access.ledger import MemoryLedger, Usage
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, IngressSettings
from serve_app.cost import format_usd
from serve_app.errors import Unavailable
from serve_app.models import ModelSpec
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Tier
from serve_app.web.app import create_app
from serve_app.web.dialect import DialectEndpoint, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import object_example
from tests.fakes import FakeBackend
from tests.web.schema.conftest import CALIBRATED

PRICED = replace(CALIBRATED, nano_usd_per_1k_tokens=1_000_000)
ROUTES = [
    pytest.param(route, id=f"{route.endpoint.path} {route.dialect.name}")
    for candidates in endpoints_by_path(load_dialects()).values()
    for route in candidates
]
TOKENIZER_ROUTE = re.compile(r"token|decode|/api/show")
SECRET = "es-s3cret"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


def client_of(backend: FakeBackend, ledger: MemoryLedger, spec: ModelSpec) -> TestClient:
    service = EmbedService(spec, backend, IngressSettings())
    entrance = Entrance(MemoryQuotaStore(), service.meter.process, ledger=ledger)
    app = create_app(Catalog([service]), entrance)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client(backend: FakeBackend, ledger: MemoryLedger) -> Iterator[TestClient]:
    with client_of(backend, ledger, PRICED) as client:
        yield client


async def total(ledger: MemoryLedger) -> Usage:
    usage = Usage()
    for row in await ledger.rows():
        usage = usage.plus(row.usage)
    return usage


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("accept", ["application/json", "application/octet-stream"])
async def test_each_dialect_reports_what_it_charges(
    client: TestClient, ledger: MemoryLedger, route: DialectEndpoint, accept: str
) -> None:
    path = re.sub("{.*}", PRICED.name, route.endpoint.path)
    body = object_example(route.endpoint.fields)
    reply = client.post(path, json=body, headers={"accept": accept})
    assert reply.status_code == 200, reply.text
    usage = await total(ledger)
    if TOKENIZER_ROUTE.search(path):
        assert "x-cost-usd" not in reply.headers
        assert usage == Usage()
    else:
        assert usage.nano_usd > 0
        assert usage.requests == 1
        assert reply.headers["x-cost-usd"] == format_usd(usage.nano_usd)
    documented = client.get("/openapi.json").json()["paths"]
    operation = documented[re.sub(":path(?=})", "", route.endpoint.path)]["post"]
    headers = operation["responses"]["200"]["headers"]
    assert ("x-cost-usd" in headers) == (usage.requests == 1)


@pytest.mark.parametrize("route", ROUTES)
async def test_replies_of_free_models_have_no_cost(
    backend: FakeBackend, ledger: MemoryLedger, route: DialectEndpoint
) -> None:
    with client_of(backend, ledger, CALIBRATED) as client:
        path = re.sub("{.*}", PRICED.name, route.endpoint.path)
        reply = client.post(path, json=object_example(route.endpoint.fields))
    assert reply.status_code == 200
    assert "x-cost-usd" not in reply.headers
    assert await ledger.rows() == []


async def test_cached_texts_cost_nothing_and_count_as_saved(
    client: TestClient, backend: FakeBackend, ledger: MemoryLedger
) -> None:
    backend.tiers = [Tier.L1, Tier.JOINED]
    reply = client.post("/v1/embeddings", json={"input": ["a", "bc"]})
    assert reply.headers["x-cost-usd"] == "0.000000000"
    assert await total(ledger) == Usage(1, 2, 0, 3, 0, 0, 3000)
    stats = client.get("/embedding/stats").json()
    assert (stats["cost_usd"], stats["saved_usd"]) == (0, 3e-6)


async def test_failed_requests_cost_nothing(
    client: TestClient, backend: FakeBackend, ledger: MemoryLedger
) -> None:
    assert client.post("/v1/embeddings", json={"input": []}).status_code == 400
    body = {"inputs": "x" * 99, "truncate": False}
    assert client.post("/embed", json=body).status_code >= 400
    backend.error = Unavailable("gone")
    reply = client.post("/v1/embeddings", json={"input": "a"})
    assert reply.status_code == 503
    assert "x-cost-usd" not in reply.headers
    assert await ledger.rows() == []


async def test_a_request_with_a_key_is_charged_to_its_name(
    backend: FakeBackend, ledger: MemoryLedger
) -> None:
    service = EmbedService(PRICED, backend, IngressSettings())
    entrance = Entrance(MemoryQuotaStore(), service.meter.process, ledger=ledger)
    keys = [{"name": "alice", "sha256": digest(SECRET)}]
    entrance.apply(AccessSettings.model_validate({"keys": keys}))
    client = TestClient(create_app(Catalog([service]), entrance))
    for _ in range(3):
        client.post("/embed", json={"inputs": "abc"}, headers={"x-api-key": SECRET})
    client.post("/embed", json={"inputs": "abc"})  # 401
    (row,) = await ledger.rows()
    assert (row.model, row.key, row.usage.requests) == (PRICED.name, "alice", 3)
    assert row.usage.nano_usd == ledger.month_nano_usd("alice") == 9000
    metrics = client.get("/metrics", headers={"x-api-key": SECRET}).text
    labels = f'{{key="alice",model="{PRICED.name}"}}'
    assert f"ray_embedserve_cost_nanodollars_total{labels} 9000.0" in metrics
    assert f"ray_embedserve_saved_nanodollars_total{labels} 0.0" in metrics
