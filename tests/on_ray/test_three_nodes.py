"""A service on three nodes without `cache.url`: one cache, one count of quotas, the same keys."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

from tests.on_ray.conftest import SEPARATE, Service, running_service, service_config
from tests.on_ray.test_keys import key_entry, logs_with

LIMIT, LIMITED_KEYS = 20, [f"es-limited-{i}" for i in range(10)]
OTHER_KEY, NEW_KEY = "es-unlimited", "es-new"
#: Until the cache has what was computed, unless the machine is very busy.
WRITE_DELAY_S = 1.0
#: The deployments that have a replica on each node.
SPREAD = ("Ingress", "CacheLookup")


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        yield Path(scratch)


def write_keys(scratch: Path, *entries: dict[str, object]) -> Path:
    file = scratch / "keys.json"
    file.write_text(json.dumps({"keys": entries}))
    return file


@pytest.fixture(scope="module")
def service(scratch: Path) -> Iterator[Service]:
    keys = write_keys(
        scratch,
        *(key_entry(key, key, requests_per_minute=LIMIT) for key in LIMITED_KEYS),
        key_entry("other", OTHER_KEY),
    )
    config = service_config(SEPARATE, str(scratch))
    application = config["applications"][0]
    application["args"] = {
        "model": {"name": "words", "source": "hashing:64"},
        "cache": {"data_dir": f"{scratch}/cache"},
    }
    for deployment in application["deployments"]:
        if deployment["name"] in SPREAD:
            deployment |= {"num_replicas": 3, "max_replicas_per_node": 1}
    application["deployments"][0]["user_config"]["access"] = {"keys_file": str(keys)}
    with running_service(SEPARATE, config, str(scratch), more_nodes=2) as service:
        deadline = time.monotonic() + 120
        while any(len(service.nodes_of(deployment)) < 3 for deployment in SPREAD):
            assert time.monotonic() < deadline, service.process.application()
            time.sleep(0.5)
        yield service


def embed(service: Service, text: str, key: str | None) -> httpx2.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx2.post(  # a new connection each time reaches each Ingress in turn
        f"{service.url}/v1/embeddings", json={"input": text}, headers=headers, timeout=30
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


def test_keys_change_on_all_nodes_without_a_restart(service: Service, scratch: Path) -> None:
    assert service.health()["status"] == "ok"  # without a key
    assert {embed(service, "a", key).status_code for key in (None, NEW_KEY)} == {401}
    write_keys(scratch, key_entry("new", NEW_KEY))
    deadline = time.monotonic() + 30
    while {embed(service, "a", NEW_KEY).status_code for _ in range(6)} != {200}:
        assert time.monotonic() < deadline, "The new key is not accepted."
        time.sleep(0.2)
    assert {embed(service, "a", OTHER_KEY).status_code for _ in range(6)} == {401}
    assert logs_with(OTHER_KEY, scratch) == []
