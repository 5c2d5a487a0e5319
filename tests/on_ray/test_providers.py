"""A local model and one that a fake provider runs, on Ray."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from serve_app.command.checked_service import CheckedService
from serve_app.command.served_models import served_models
from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config
from tests.providers import fake_servers
from tests.providers.fake_servers import DIM, KEY, FakeServer, fake_vectors, run_fake_server

REMOTE = "text-embedding-3-small"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeServer]:
    with run_fake_server("openai") as server:
        yield server


@pytest.fixture(scope="module")
def mixed(provider: FakeServer) -> Iterator[Service]:
    """A service with a local model in the Embedder and a remote one in Providers."""
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = service_config(SEPARATE, scratch)
        key_file = Path(scratch) / "key"
        key_file.write_text(KEY, "utf-8")
        (application,) = config["applications"]
        application["args"]["models"] = [
            {"name": "local", "source": "hashing:16"},
            {
                "name": REMOTE,
                "provider": {
                    "base_url": provider.url,
                    "api_key_file": str(key_file),
                    "dimensions": DIM,
                },
            },
        ]
        del application["args"]["model"]
        application["deployments"].append({"name": "Providers", "num_replicas": 1})
        with running_service(SEPARATE, config, scratch) as service:
            yield service


def post(service: Service, path: str, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{service.url}{path}", json=body, timeout=60)


async def test_the_costs_of_replies_add_up(mixed: Service) -> None:
    def total() -> Decimal:
        reply = httpx2.get(f"{mixed.url}/cost", timeout=30)
        return Decimal(reply.json()["total"]["cost_usd"])

    before = total()
    replies = [
        post(mixed, "/v1/embeddings", input=[f"text {i}", f"another {i}"], model=REMOTE)
        for i in range(20)
    ]
    costs = [Decimal(reply.headers["x-cost-usd"]) for reply in replies]
    assert min(costs) > 0
    await mixed.wait_until(lambda: total() - before == sum(costs))


def test_both_kinds_of_models_answer_and_are_cached(mixed: Service, provider: FakeServer) -> None:
    calls = len(provider.received)
    for _ in range(2):
        reply = post(mixed, "/v1/embeddings", input=["a text", "another"], model=REMOTE)
        vectors = [item["embedding"] for item in reply.json()["data"]]
        assert np.array_equal(np.array(vectors, np.float32), fake_vectors("a text", "another"))
        assert reply.headers["x-cost-usd"] is not None
    assert [received.texts for received in provider.received[calls:]] == [["a text", "another"]]
    reply = post(mixed, "/v1/embeddings", input="a text")
    assert reply.json()["model"] == "local"


def test_errors_of_a_provider_keep_their_status(mixed: Service, provider: FakeServer) -> None:
    provider.script.append(fake_servers.HALF_LIST)
    reply = post(mixed, "/v1/embeddings", input=["wrong", "reply"], model=REMOTE)
    assert reply.status_code == 502
    assert KEY not in reply.text
    reply = post(mixed, "/tokenize", inputs="a", model=REMOTE)
    assert 400 <= reply.status_code < 500
    assert "provider" in reply.text


def test_the_replica_is_replaced(mixed: Service) -> None:
    (pid,) = mixed.replica_pids("Providers")
    psutil.Process(pid).kill()
    reply = post(mixed, "/v1/embeddings", input="after the crash", model=REMOTE)
    assert reply.status_code == 200, reply.text
    assert pid not in mixed.replica_pids("Providers")
    info = httpx2.get(f"{mixed.url}/info", params={"model": REMOTE}, timeout=30).json()
    assert (info["engine"], info["device"]) == ("openai", "remote")


async def test_the_status_lists_models_of_providers(mixed: Service) -> None:
    def models() -> list[tuple[str, str, int, int]]:
        with closing(CheckedService(mixed.url, None, 30)) as service:
            return [(m.name, m.state, m.replicas, m.loaded) for m in served_models(service)]

    await mixed.wait_until(lambda: models() == [("local", "ok", 1, 1), (REMOTE, "ok", 1, 0)])
