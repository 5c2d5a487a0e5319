import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import redis

from serve_app.command.ports import free_port
from serve_app.command.service_process import ServiceProcess, StartupError
from serve_app.valkey.embedded import lease_server


def test_an_exit_before_readiness_is_an_error_with_the_log() -> None:
    service = ServiceProcess({"http_options": {"port": free_port()}, "not a setting": 1})
    service.start()
    try:
        with pytest.raises(StartupError, match="not a setting"):
            list(service.wait_until_ready())
    finally:
        service.stop()


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
        service = ServiceProcess({"http_options": {"port": free_port()}}, python=str(python))
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
