import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml

from serve_app.command.ports import free_port
from serve_app.command.process_tree import process_name
from serve_app.command.ray_service import RayService
from serve_app.command.service_process import ServiceFailure, StartupError
from serve_app.valkey.embedded import lease_server


def test_an_exit_before_readiness_is_an_error_with_the_log() -> None:
    service = RayService({"http_options": {"port": free_port()}, "not a setting": 1})
    service.start()
    try:
        with pytest.raises(StartupError, match="not a setting"):
            list(service.wait_until_ready())
    finally:
        service.stop()


def startup_error(tmp_path: Path, script: str) -> str:
    """Returns the message of a service whose interpreter is a script that ends."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\nexit 1\n", "utf-8")
    python.chmod(0o700)
    service = RayService({"http_options": {"port": free_port()}}, python=str(python))
    service.start()
    try:
        with pytest.raises(StartupError) as raised:
            list(service.wait_until_ready())
    finally:
        service.stop()
    return str(raised.value)


def test_the_log_of_an_exit_has_the_lines_that_come_last(tmp_path: Path) -> None:
    assert "the reason\n" in startup_error(tmp_path, "(sleep 0.5; echo the reason) &")


def test_a_proxy_may_take_long_to_start(tmp_path: Path) -> None:
    # Ray kills a proxy that isn't ready within this time, 5 s by default.
    assert "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=120\n" in startup_error(tmp_path, "env")


OWNER = """
import os, signal, time
from pathlib import Path
from serve_app.valkey.embedded import lease_server
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent of the tests may ignore it
lease_server(Path({cache_dir!r}), "service", os.getpid(), 10_000_000, grace_s=3600)
time.sleep(3600)
"""


def test_the_cache_server_ends_with_the_service_and_keeps_its_data() -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        cache_dir = Path(scratch) / "cache"
        owner = Path(scratch) / "owner.py"
        owner.write_text(OWNER.format(cache_dir=str(cache_dir)), "utf-8")
        python = Path(scratch) / "python"
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {owner}\n", "utf-8")
        python.chmod(0o700)
        service = RayService({"http_options": {"port": free_port()}}, python=str(python))
        service.start()
        try:
            deadline = time.monotonic() + 30
            while not (cache_dir / "0" / "valkey.sock").exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # The process that forked the supervisor may exit a moment later.
            while len(processes := service.processes()) > 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(processes) == 3, "the service, the supervisor, the server"
            with redis.Redis(unix_socket_path=str(cache_dir / "0" / "valkey.sock")) as client:
                client.set("key", "value")
        finally:
            service.stop()
        assert not any(map(psutil.Process.is_running, processes))
        lease = lease_server(cache_dir, "service", os.getpid(), 10_000_000, grace_s=0)
        try:
            with redis.Redis(unix_socket_path=str(lease.socket)) as client:
                assert client.get("key") == b"value"
        finally:
            lease.release()
            while lease.server_dir.is_supervised():
                time.sleep(0.05)


#: A program that serves HTTP like `serve run`, with processes that are called like those of Ray.
SERVICE = """
import http.server, shutil, signal, subprocess, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent of the tests may ignore it
scratch = Path({scratch!r})
shutil.copy(sys.argv[-1], scratch / "config.yaml")
for name in ("gcs_server", "raylet"):
    program = scratch / name
    program.symlink_to("/bin/sleep")
    subprocess.Popen([program, "3600"])
if {dashboard}:
    print("View the dashboard at http://127.0.0.1:{port}", flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/api/serve/applications/":
            self.wfile.write((scratch / "applications.json").read_bytes())

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


class FakeRay:
    """A fake of `serve run` and of the dashboard of its Ray."""

    def __init__(self, scratch: Path, *, dashboard: bool = True) -> None:
        self.scratch = scratch
        self.deploy("first", deployed_at=1.0)
        port = free_port()
        program = scratch / "service.py"
        program.write_text(
            SERVICE.format(scratch=str(scratch), port=port, dashboard=dashboard), "utf-8"
        )
        python = scratch / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n', "utf-8")
        python.chmod(0o700)
        config = {"http_options": {"port": port}, "applications": [application("first")]}
        self.service = RayService(config, python=str(python))

    def deploy(self, model: str, *, deployed_at: float, status: str = "RUNNING") -> None:
        """Changes what the dashboard reports."""
        report = {
            "status": status,
            "last_deployed_time_s": deployed_at,
            "deployed_app_config": application(model),
            "deployments": {},
        }
        file = self.scratch / "new.json"
        file.write_text(json.dumps({"applications": {"e": report}}), "utf-8")
        file.rename(self.scratch / "applications.json")

    def started_config(self) -> Any:
        """Returns the configuration with which `serve run` was started for the last time."""
        return yaml.safe_load((self.scratch / "config.yaml").read_text("utf-8"))


def application(model: str) -> dict[str, Any]:
    return {"name": "e", "import_path": "a:b", "args": {"model": {"name": model}}}


@pytest.fixture
def ray() -> Iterator[FakeRay]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        ray = FakeRay(Path(scratch))
        ray.service.start()
        try:
            deadline = time.monotonic() + 30
            while ray.service.dashboard_url is None and time.monotonic() < deadline:
                time.sleep(0.01)
            list(ray.service.wait_until_ready(timeout_s=30))
            yield ray
        finally:
            ray.service.stop(kill=True)


def test_a_service_is_ready_without_a_dashboard(tmp_path: Path) -> None:
    ray = FakeRay(tmp_path, dashboard=False)
    ray.service.start()
    try:
        list(ray.service.wait_until_ready(timeout_s=30))
        assert ray.service.application() == {}
        assert ray.service.replica_states() == {}
    finally:
        ray.service.stop(kill=True)


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_the_death_of_rays_node_is_a_failure(ray: FakeRay, name: str) -> None:
    (process,) = (p for p in ray.service.processes() if process_name(p) == name)
    process.kill()
    with pytest.raises(ServiceFailure, match="Ray's node died"):
        ray.service.watch()


@pytest.mark.parametrize(
    ("deployment", "model"),
    [
        (None, "first"),
        ({"model": "second", "deployed_at": 2.0}, "second"),
        ({"model": "second", "deployed_at": 2.0, "status": "DEPLOY_FAILED"}, "first"),
    ],
    ids=["none", "another", "failed"],
)
def test_the_successor_runs_what_was_deployed_last(
    ray: FakeRay, deployment: dict[str, Any] | None, model: str
) -> None:
    if deployment is not None:
        ray.deploy(**deployment)
    (raylet,) = (p for p in ray.service.processes() if process_name(p) == "raylet")
    timer = threading.Timer(2, raylet.kill)
    timer.start()
    with pytest.raises(ServiceFailure):
        ray.service.watch(check_period_s=0.1)
    timer.join()
    ray.service.stop(kill=True)
    for link in ("gcs_server", "raylet"):
        (ray.scratch / link).unlink()
    ray.service = ray.service.successor()
    ray.service.start()
    list(ray.service.wait_until_ready(timeout_s=30))
    config = ray.started_config()
    assert config["applications"] == [application(model)]
    assert ray.service.url.endswith(f":{config['http_options']['port']}")
