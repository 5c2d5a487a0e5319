"""API keys of a running service: changed without a restart, counted over all Ingress replicas."""

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import yaml

from serve_app.command.serve import ServiceProcess, free_port, with_free_ports
from tests.on_ray.conftest import ROOT

KEY, LATER = "es-of-the-first-hour", "es-of-later"


def entry(name: str, key: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


@contextmanager
def running(keys: Path, scratch: str) -> Iterator[ServiceProcess]:
    """Two Ingress replicas in front of an engine that needs no model."""
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
    launch = ServiceProcess(
        with_free_ports(config, free_port(), Path(scratch)),
        env={"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
    )
    launch.start()
    try:
        for doing in launch.wait_until_ready(timeout_s=180):
            print(doing)
        yield launch
    finally:
        launch.stop()


def test_keys_change_without_a_restart_and_are_counted_together() -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        keys = Path(scratch) / "keys.json"
        keys.write_text(json.dumps({"keys": [entry("first", KEY, requests_per_minute=10)]}))
        with running(keys, scratch) as launch:

            def ask(key: str | None) -> httpx2.Response:
                headers = {} if key is None else {"authorization": f"Bearer {key}"}
                return httpx2.post(  # each on a connection of its own, so that replicas take turns
                    f"{launch.url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=30
                )

            assert httpx2.get(f"{launch.url}/health", timeout=30).status_code == 200
            assert [ask(None).status_code, ask(LATER).status_code] == [401, 401]

            statuses = [ask(KEY).status_code for _ in range(14)]
            assert 10 <= statuses.count(200) <= 12  # a bucket fills while it is asked of
            assert set(statuses) == {200, 429}

            keys.write_text(json.dumps({"keys": [entry("later", LATER)]}))
            end = time.monotonic() + 30
            while {ask(LATER).status_code for _ in range(4)} != {200}:
                assert time.monotonic() < end, "The new key isn't known."
                time.sleep(0.2)
            assert ask(KEY).status_code == 401
            logs = Path(scratch).rglob("*.log")
            told = [str(log) for log in logs if KEY.encode() in log.read_bytes()]
            assert told == []
