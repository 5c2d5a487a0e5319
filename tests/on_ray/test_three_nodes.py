"""A service on three nodes without `cache.url`: one cache, and one count of each quota."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config

LIMIT, LIMITED_KEYS, OTHER_KEY = 20, [f"es-limited-{i}" for i in range(10)], "es-unlimited"
#: Until the cache has what was computed, unless the machine is very busy.
WRITE_DELAY_S = 1.0
#: The deployments that have a replica on each node.
SPREAD = ("Ingress", "CacheLookup")


def key_entry(name: str, key: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        keys = Path(scratch) / "keys.json"
        entries = [
            *(key_entry(key, key, requests_per_minute=LIMIT) for key in LIMITED_KEYS),
            key_entry("other", OTHER_KEY),
        ]
        keys.write_text(json.dumps({"keys": entries}))
        config = service_config(SEPARATE, scratch)
        application = config["applications"][0]
        application["args"] = {
            "model": {"name": "words", "source": "hashing:64"},
            "cache": {"data_dir": f"{scratch}/cache"},
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


def is_limit_shared(service: Service, key: str) -> bool:
    started = time.monotonic()
    statuses = [embed(service, "a", key).status_code for _ in range(3 * LIMIT)]
    refilled = (time.monotonic() - started) * LIMIT / 60
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= LIMIT
    return statuses.count(200) <= LIMIT + 1 + refilled


def is_cache_shared(service: Service, texts: Sequence[str]) -> bool:
    for text in texts:
        assert embed(service, text, OTHER_KEY).headers["x-cache"] == "hits=0; misses=1"
    time.sleep(WRITE_DELAY_S)
    found = {embed(service, text, OTHER_KEY).headers["x-cache"] for text in texts for _ in range(9)}
    return found == {"hits=1; misses=0; tier=l1", "hits=1; misses=0; tier=l2"}


def test_the_limit_of_a_key_holds_over_all_nodes(service: Service) -> None:
    # Until a node has found the server, its Ingress counts by itself.
    assert any(is_limit_shared(service, key) for key in LIMITED_KEYS)


def test_a_text_is_computed_once_for_all_nodes(service: Service) -> None:
    assert any(
        is_cache_shared(service, [f"text {attempt} {i}" for i in range(8)]) for attempt in range(10)
    )
