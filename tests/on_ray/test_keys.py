"""API keys change without a restart, and quotas count over all Ingress replicas."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import yaml

from serve_app.command.ports import free_port, with_free_ports
from serve_app.command.ray_service import RayService
from tests.on_ray.conftest import ROOT

FIRST_KEY, SECOND_KEY = "es-first-key", "es-second-key"


def key_entry(name: str, key: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


@contextmanager
def running_service(keys: Path, scratch: str) -> Iterator[RayService]:
    """Runs a service with two Ingress replicas and a hashing engine."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    application = config["applications"][0]
    application["args"] = {
        "model": {"name": "words", "source": "hashing:64"},
        "cache": {"data_dir": f"{scratch}/cache"},
    }
    for deployment in application["deployments"]:
        if deployment["name"] == "Ingress":
            deployment["num_replicas"] = 2
            deployment["user_config"]["access"] = {"keys_file": str(keys)}
        if deployment["name"] == "Embedder":
            deployment["ray_actor_options"] = {"num_cpus": 1}
    process = RayService(
        with_free_ports(config, free_port(), Path(scratch)),
        env={"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
    )
    process.start()
    try:
        for progress in process.wait_until_ready(timeout_s=180):
            print(progress)
        yield process
    finally:
        process.stop()


def test_keys_change_without_a_restart_and_quotas_are_shared() -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        keys = Path(scratch) / "keys.json"
        keys.write_text(
            json.dumps({"keys": [key_entry("first", FIRST_KEY, requests_per_minute=10)]})
        )
        with running_service(keys, scratch) as process:

            def embed(key: str | None) -> httpx2.Response:
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                return httpx2.post(  # a new connection each time reaches both replicas
                    f"{process.url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=30
                )

            assert httpx2.get(f"{process.url}/health", timeout=30).status_code == 200
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
            logs = Path(scratch).rglob("*.log")
            leaks = [str(log) for log in logs if FIRST_KEY.encode() in log.read_bytes()]
            assert leaks == []
