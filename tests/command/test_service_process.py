import sys
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from serve_app.command.ports import free_port
from serve_app.command.process_tree import command_line
from serve_app.command.service_process import ServiceFailure, ServiceProcess, StartupError

#: A program that serves HTTP and starts an orphan.
SERVICE = """
import http.server, os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent of the tests may ignore it
subprocess.run(["sh", "-c", "sleep 3601 &"])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/drain":
            signal.signal(signal.SIGINT, lambda *_: threading.Timer(0.5, exit).start())
        if self.path == "/ignore":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.path == "/stop-listening":
            threading.Thread(target=server.shutdown).start()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass

def exit():
    os._exit(0)

server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
server.server_close()
signal.pause()
"""


@pytest.fixture
def service() -> Iterator[ServiceProcess]:
    port = free_port()
    service = ServiceProcess([sys.executable, "-c", SERVICE, str(port)], f"http://127.0.0.1:{port}")
    service.start()
    try:
        assert [step.partition(" (")[0] for step in service.wait_until_ready(timeout_s=30)] in (
            [],
            ["the service"],
        )
        yield service
    finally:
        service.stop(kill=True)


def test_an_exit_before_readiness_is_an_error_with_the_output() -> None:
    command = [sys.executable, "-c", "print('the disk is full'); raise SystemExit(3)"]
    service = ServiceProcess(command, f"http://127.0.0.1:{free_port()}")
    service.start()
    try:
        with pytest.raises(StartupError, match=r"(?s)exited with status 3.*the disk is full"):
            list(service.wait_until_ready())
    finally:
        service.stop()


def test_an_exit_is_a_failure(service: ServiceProcess) -> None:
    (process,) = (p for p in service.processes() if command_line(p)[1:2] == ["-c"])
    process.kill()
    with pytest.raises(ServiceFailure, match="The service exited with status -9"):
        service.watch()


def test_a_service_that_nobody_can_reach_is_a_failure(service: ServiceProcess) -> None:
    urllib.request.urlopen(f"{service.url}/stop-listening").close()
    with pytest.raises(ServiceFailure, match="Nothing answers"):
        service.watch(check_period_s=0.05)


def test_stopping_ends_processes_whose_parent_has_ended(service: ServiceProcess) -> None:
    processes = service.processes()
    assert any("3601" in command_line(p) for p in processes)
    service.stop()
    assert not any(map(psutil.Process.is_running, processes))


@pytest.mark.parametrize(
    ("path", "timeout_s", "drained"), [("drain", 30, True), ("ignore", 1, False)]
)
def test_draining_waits_for_the_end(
    service: ServiceProcess, path: str, timeout_s: float, drained: bool
) -> None:
    urllib.request.urlopen(f"{service.url}/{path}").close()
    assert service.drain(timeout_s) == drained


def test_the_successor_has_the_same_command_and_url(service: ServiceProcess) -> None:
    service.stop()
    successor = service.successor()
    assert successor.url == service.url
    successor.start()
    try:
        list(successor.wait_until_ready(timeout_s=30))
    finally:
        successor.stop(kill=True)
