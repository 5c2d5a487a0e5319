import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import redis
import yaml

from serve_app.command.serve import (
    ServiceProcess,
    StartupError,
    free_port,
    port_in_use,
    with_free_ports,
)
from serve_app.valkey.embedded import lease_server

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "serve_config.yaml").read_text("utf-8"))


def test_a_second_service_keeps_out_of_the_firsts_way(tmp_path: Path) -> None:
    moved = with_free_ports(CONFIG, 8123, tmp_path)
    before, after = (c["controller_options"]["runtime_env"]["env_vars"] for c in (CONFIG, moved))
    assert moved["http_options"]["port"] == 8123
    assert CONFIG["http_options"]["port"] == 8000
    changed = {name for name in after if after[name] != before.get(name)}
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" in changed
    assert before.items() <= after.items()


def test_a_taken_port_is_seen(tmp_path: Path) -> None:
    config = with_free_ports(CONFIG, free_port(), tmp_path)
    env = config["controller_options"]["runtime_env"]["env_vars"]
    ports = [config["http_options"]["port"], int(env["RAY_SERVE_HAPROXY_STATS_PORT"])]
    assert port_in_use(config) is None
    for port in ports:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            assert port_in_use(config) == port


def test_a_child_that_ends_is_told_with_its_last_words() -> None:
    launch = ServiceProcess({"http_options": {"port": free_port()}, "not a setting": 1})
    launch.start()
    try:
        with pytest.raises(StartupError, match="not a setting"):
            list(launch.wait_until_ready())
    finally:
        launch.stop()


OWNER = """
import os, signal, time
from pathlib import Path
from serve_app.valkey.embedded import lease_server
signal.signal(signal.SIGINT, signal.SIG_DFL)  # who starts the tests may have it ignored
lease_server(Path({base!r}), "service", os.getpid(), 10_000_000, grace_s=3600)
time.sleep(3600)
"""


def test_the_cache_server_ends_with_the_service_and_keeps_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        base = Path(scratch) / "cache"
        owner = Path(scratch) / "owner.py"
        owner.write_text(OWNER.format(base=str(base)), "utf-8")
        stand_in = Path(scratch) / "python"
        stand_in.write_text(f"#!/bin/sh\nexec {sys.executable} {owner}\n", "utf-8")
        stand_in.chmod(0o700)
        launch = ServiceProcess({"http_options": {"port": free_port()}})
        with monkeypatch.context() as patched:
            patched.setattr("serve_app.command.serve.sys.executable", str(stand_in))
            launch.start()
        try:
            end = time.monotonic() + 30
            while not (base / "0" / "valkey.sock").exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            # The child whose child the supervisor is ends by itself, maybe a moment later.
            while len(processes := launch.processes()) > 3 and time.monotonic() < end:
                time.sleep(0.05)
            assert len(processes) == 3, "the service, the supervisor, the server"
            with redis.Redis(unix_socket_path=str(base / "0" / "valkey.sock")) as client:
                client.set("key", "value")
        finally:
            launch.stop()
        assert not any(map(psutil.Process.is_running, processes))
        lease = lease_server(base, "service", os.getpid(), 10_000_000, grace_s=0)
        try:
            with redis.Redis(unix_socket_path=str(lease.socket)) as client:
                assert client.get("key") == b"value"
        finally:
            lease.release()
            while lease.server_dir.is_supervised():
                time.sleep(0.05)
