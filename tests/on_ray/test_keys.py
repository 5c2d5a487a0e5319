"""API keys change without a restart, and quotas count over all replicas.

`test_three_nodes` tests the same with deployments that are separate.
"""

import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.on_ray.conftest import COLOCATED, STANDALONE, running_service, service_config

FIRST_KEY, SECOND_KEY = "es-first-key", "es-second-key"


def key_entry(name: str, key: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


def logs_with(key: str, folder: Path) -> list[str]:
    """Returns the log files that contain a key."""
    return [str(log) for log in folder.rglob("*.log") if key.encode() in log.read_bytes()]


def with_two_http_replicas(config: dict[str, Any], keys: Path) -> dict[str, Any]:
    """Returns the configuration with API keys, a hashing engine, and two replicas for requests."""
    application = config["applications"][0]
    application["args"]["model"] = {"name": "words", "source": "hashing:64"}
    deployment = application["deployments"][0]
    deployment["user_config"]["access"] = {"keys_file": str(keys)}
    deployment["autoscaling_config"]["min_replicas"] = 2
    return config


@pytest.mark.parametrize("kind", [COLOCATED, STANDALONE])
def test_keys_change_without_a_restart_and_quotas_are_shared(kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        keys = Path(scratch) / "keys.json"
        keys.write_text(
            json.dumps({"keys": [key_entry("first", FIRST_KEY, requests_per_minute=10)]})
        )
        config = with_two_http_replicas(service_config(kind, scratch), keys)
        with running_service(kind, config, scratch) as service:

            def embed(key: str | None) -> httpx2.Response:
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                return httpx2.post(  # a new connection each time reaches both replicas
                    f"{service.url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=30
                )

            assert httpx2.get(f"{service.url}/health", timeout=30).status_code == 200
            assert [embed(None).status_code, embed(SECOND_KEY).status_code] == [401, 401]

            statuses = [embed(FIRST_KEY).status_code for _ in range(14)]
            assert 10 <= statuses.count(200) <= 12  # the bucket refills during the requests
            assert set(statuses) == {200, 429}

            keys.write_text(json.dumps({"keys": [key_entry("second", SECOND_KEY)]}))
            deadline = time.monotonic() + 30
            while {embed(SECOND_KEY).status_code for _ in range(4)} != {200}:
                assert time.monotonic() < deadline, "The new key is not accepted."
                time.sleep(0.2)
            assert embed(FIRST_KEY).status_code == 401
            assert logs_with(FIRST_KEY, Path(scratch)) == []
