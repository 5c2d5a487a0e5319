"""A service on three nodes with one cache server: one cache, and one count of each quota."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config
from tests.valkey_server import ValkeyProcess

KEY, LIMIT, OTHER_KEY = "es-limited", 30, "es-unlimited"
#: The deployments that have a replica on each node.
SPREAD = ("Ingress", "CacheLookup")


def key_entry(name: str, key: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path_factory.mktemp("valkey")) as process:
        yield process


@pytest.fixture(scope="module")
def service(valkey: ValkeyProcess) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        keys = Path(scratch) / "keys.json"
        entries = [
            key_entry("limited", KEY, requests_per_minute=LIMIT),
            key_entry("other", OTHER_KEY),
        ]
        keys.write_text(json.dumps({"keys": entries}))
        config = service_config(SEPARATE, scratch)
        application = config["applications"][0]
        application["args"] = {
            "model": {"name": "words", "source": "hashing:64"},
            "cache": {"url": valkey.url},
        }
        for deployment in application["deployments"]:
            if deployment["name"] in SPREAD:
                deployment |= {"num_replicas": 3, "max_replicas_per_node": 1}
        application["deployments"][0]["user_config"]["access"] = {"keys_file": str(keys)}
        with running_service(SEPARATE, config, scratch, more_nodes=2) as service:
            deadline = time.monotonic() + 120
            while any(len(service.nodes_of(deployment)) < 3 for deployment in SPREAD):
                assert time.monotonic() < deadline, service.process.application()
                time.sleep(0.5)
            yield service


def embed(service: Service, text: str, key: str) -> httpx2.Response:
    return httpx2.post(  # a new connection each time reaches each Ingress in turn
        f"{service.url}/v1/embeddings",
        json={"input": text},
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
    )


def test_the_limit_of_a_key_holds_over_all_nodes(service: Service) -> None:
    started = time.monotonic()
    statuses = [embed(service, "a", KEY).status_code for _ in range(2 * LIMIT)]
    refilled = (time.monotonic() - started) * LIMIT / 60
    assert set(statuses) == {200, 429}
    assert LIMIT <= statuses.count(200) <= LIMIT + 1 + refilled


def test_a_text_is_computed_once_for_all_nodes(service: Service, valkey: ValkeyProcess) -> None:
    entries = set(valkey.call("KEYS", "*"))
    assert embed(service, "a new text", OTHER_KEY).headers["x-cache"] == "hits=0; misses=1"
    deadline = time.monotonic() + 30
    while set(valkey.call("KEYS", "*")) <= entries:  # it is written in the background
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = {embed(service, "a new text", OTHER_KEY).headers["x-cache"] for _ in range(12)}
    assert found == {"hits=1; misses=0; tier=l1", "hits=1; misses=0; tier=l2"}
