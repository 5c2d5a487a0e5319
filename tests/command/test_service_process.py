import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from serve_app.command.ports import free_port
from serve_app.command.service_process import ServiceFailure, ServiceProcess, StartupError
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


#: A program that serves HTTP like `serve run`, with processes that are called like those of Ray.
SERVICE = """
import http.server, os, signal, subprocess, threading
from pathlib import Path
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent of the tests may ignore it
for name in ("gcs_server", "raylet"):
    program = Path({scratch!r}) / name
    program.symlink_to("/bin/sleep")
    subprocess.Popen([program, "3600"])
subprocess.run(["sh", "-c", "sleep 3601 &"])  # an orphan

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/stop-listening":
            threading.Thread(target=server.shutdown).start()

    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", {port}), Handler)
server.serve_forever()
server.server_close()
signal.pause()
"""


@pytest.fixture
def ready_service() -> Iterator[ServiceProcess]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        port = free_port()
        program = Path(scratch) / "service.py"
        program.write_text(SERVICE.format(scratch=scratch, port=port), "utf-8")
        python = Path(scratch) / "python"
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {program}\n", "utf-8")
        python.chmod(0o700)
        service = ServiceProcess({"http_options": {"port": port}}, python=str(python))
        service.start()
        try:
            list(service.wait_until_ready(timeout_s=30))
            yield service
        finally:
            service.stop(kill=True)


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_the_death_of_rays_node_is_a_failure(ready_service: ServiceProcess, name: str) -> None:
    (process,) = (p for p in ready_service.processes() if Path(p.cmdline()[0]).name == name)
    process.kill()
    with pytest.raises(ServiceFailure, match="Ray's node died"):
        ready_service.watch()


def test_a_service_that_nobody_can_reach_is_a_failure(ready_service: ServiceProcess) -> None:
    urllib.request.urlopen(f"{ready_service.url}/stop-listening").close()
    with pytest.raises(ServiceFailure, match="Nothing answers"):
        ready_service.watch(check_period_s=0.05)


def test_stopping_ends_processes_whose_parent_has_ended(ready_service: ServiceProcess) -> None:
    processes = ready_service.processes()
    assert any(p.cmdline()[-1] == "3601" for p in processes)
    ready_service.stop()
    assert not any(map(psutil.Process.is_running, processes))
