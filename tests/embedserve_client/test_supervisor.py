"""Supervisors and shared services, with real processes and a fake service."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from embedserve_client import Client, EmbedError, ServiceNotRunningError, Supervisor
from serve_app.command.ports import free_port
from tests.embedserve_client.scripted_server import running_server, vector

ROOT = Path(__file__).parents[2]


class Environment:
    """A port and a directory for shared services, and the supervisors that use them."""

    def __init__(self, path: Path) -> None:
        self.port = free_port()
        self.path = path
        self.shared_dir = path / "shared"
        self.supervisors: list[Supervisor] = []

    def command(self, *arguments: str) -> list[str]:
        module = "tests.embedserve_client.fake_service"
        return [sys.executable, "-m", module, str(self.port), *arguments]

    def supervisor(self, *arguments: str, **options: Any) -> Supervisor:
        defaults: dict[str, Any] = {
            "command": self.command(*arguments),
            "shared_dir": self.shared_dir,
            "ready_timeout_s": 60.0,
            "restart_delay_s": 0.05,
        }
        self.supervisors.append(Supervisor(self.port, **{**defaults, **options}))
        return self.supervisors[-1]

    def processes(self) -> list[psutil.Process]:
        """Returns the running supervisor processes and services."""
        marks = (str(self.path), f"fake_service {self.port}")
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if any(mark in " ".join(process.info["cmdline"] or []) for mark in marks)
        ]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    environment = Environment(tmp_path)
    yield environment
    for supervisor in environment.supervisors:
        supervisor.stop()
    wait_until(lambda: not environment.processes())


def wait_until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"The condition was not met within {timeout_s} s."
        time.sleep(0.05)


def service_pid(supervisor: Supervisor) -> int:
    pid = supervisor.status().pid
    assert pid is not None
    return pid


def test_start_and_stop(environment: Environment) -> None:
    progress: list[str] = []
    supervisor = environment.supervisor("--startup-s", "0.5", on_progress=progress.append)
    assert supervisor.status().state == "absent"
    status = supervisor.start()
    assert (status.state, status.managed, status.healthy) == ("ready", True, True)
    assert "fake service: starting" in progress
    with Client(supervisor.url) as client:
        assert client.embed("abc").tolist() == vector("abc")
    supervisor.stop()
    assert supervisor.status().state == "absent"
    wait_until(lambda: not environment.processes())


def test_two_supervisors_share_a_service(environment: Environment) -> None:
    first, second = environment.supervisor(), environment.supervisor()
    first.start()
    pid = service_pid(first)
    assert second.start().pid == pid
    first.stop()  # doesn't wait, because the other supervisor uses the service
    wait_until(lambda: second.status().healthy)
    assert service_pid(second) == pid
    second.stop()
    wait_until(lambda: not environment.processes())


def test_concurrent_starts_launch_one_service(environment: Environment) -> None:
    supervisors = [environment.supervisor("--startup-s", "0.3") for _ in range(4)]
    threads = [threading.Thread(target=supervisor.start) for supervisor in supervisors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({service_pid(supervisor) for supervisor in supervisors}) == 1
    command_lines = [process.info["cmdline"] for process in environment.processes()]
    module = "embedserve_client.supervisor_process"
    assert len([line for line in command_lines if module not in line]) == 1


def test_unmanaged_service_is_used_and_not_stopped(environment: Environment) -> None:
    with running_server() as server:
        supervisor = Supervisor(
            server.server_address[1], command=["false"], shared_dir=environment.path / "other"
        )
        status = supervisor.start()
        assert (status.state, status.managed) == ("ready", False)
        with pytest.raises(ServiceNotRunningError, match="wasn't started by a supervisor"):
            supervisor.restart()
        supervisor.stop()
        with Client(server.url) as client:
            assert client.health() == {"status": "ok"}


def test_crashed_service_is_restarted(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedserve_client")
    supervisor = environment.supervisor()
    supervisor.start()
    pid = service_pid(supervisor)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: supervisor.status().restarts == 1 and supervisor.status().healthy)
    assert service_pid(supervisor) != pid
    restarted = f"Restart 1 of the service at {supervisor.url}."
    wait_until(lambda: restarted in caplog.messages)
    assert [m for m in caplog.messages if "Retry" not in m] == [
        f"Starting a service at {supervisor.url}.",
        restarted,
    ]


def test_stopped_service_is_restarted(environment: Environment) -> None:
    supervisor = environment.supervisor(unresponsive_timeout_s=1.0)
    supervisor.start()
    pid = service_pid(supervisor)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: supervisor.status().restarts == 1 and supervisor.status().healthy)
    assert service_pid(supervisor) != pid
    assert "has not answered for 1 s" in (environment.shared_dir / "service.log").read_text()


def test_service_whose_port_is_closed_is_restarted_a_bounded_number_of_times(
    environment: Environment,
) -> None:
    hangs = environment.path / "hangs"
    options = {"unresponsive_timeout_s": 0.5, "max_restarts": 1}
    supervisor = environment.supervisor("--hangs", str(hangs), **options)
    supervisor.start()
    hangs.touch()
    wait_until(lambda: supervisor.status().restarts == 1)
    wait_until(lambda: supervisor.status().state == "ready")
    hangs.touch()
    wait_until(lambda: supervisor.status().state == "failed")
    assert "has not answered" in supervisor.status().message


def test_an_error_response_is_an_answer(environment: Environment) -> None:
    supervisor = environment.supervisor("--unhealthy", unresponsive_timeout_s=0.1)
    supervisor.start()
    pid = service_pid(supervisor)
    wait_until(lambda: not supervisor.status().healthy)
    time.sleep(3)  # several checks of the supervisor process
    assert service_pid(supervisor) == pid


def test_restart(environment: Environment) -> None:
    supervisor = environment.supervisor()
    supervisor.start()
    pid = service_pid(supervisor)
    status = supervisor.restart()
    assert (status.state, status.restarts) == ("ready", 1)
    assert status.pid != pid


def test_failed_start_is_retried(environment: Environment) -> None:
    fails = environment.path / "fails"
    fails.write_text("3")
    status = environment.supervisor("--fails", str(fails)).start()
    assert (status.state, status.restarts) == ("ready", 3)


def test_start_fails_after_max_restarts_with_the_services_output(
    environment: Environment,
) -> None:
    fails = environment.path / "fails"
    fails.write_text("99")
    supervisor = environment.supervisor("--fails", str(fails), max_restarts=2)
    with pytest.raises(
        ServiceNotRunningError, match=r"exited with status 3.*\nfake service: the disk is full"
    ):
        supervisor.start()
    assert supervisor.status().state == "failed"
    assert fails.read_text() == "96"
    assert "the disk is full" in (environment.shared_dir / "service.log").read_text()
    fails.write_text("0")
    assert supervisor.start().state == "ready"  # a failed service can be started again


def test_missing_command(environment: Environment) -> None:
    supervisor = environment.supervisor(
        command=["/no/such/program"], restart_delay_s=0.01, max_restarts=1
    )
    with pytest.raises(ServiceNotRunningError, match="can't be started"):
        supervisor.start()


def test_ready_timeout(environment: Environment) -> None:
    supervisor = environment.supervisor("--startup-s", "60", ready_timeout_s=1.0)
    with pytest.raises(ServiceNotRunningError, match="not ready after 1 s"):
        supervisor.start()


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from embedserve_client import Supervisor
supervisor = Supervisor({port}, command={command!r}, shared_dir=Path({shared_dir!r}))
supervisor.start()
print("started", flush=True)
{end}
"""


def start_program(environment: Environment, end: str) -> "subprocess.Popen[str]":
    code = PROGRAM.format(
        port=environment.port,
        command=environment.command(),
        shared_dir=str(environment.shared_dir),
        end=end,
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize(
    "number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n and n.name
)
def test_service_stops_after_its_last_program_exits(
    environment: Environment, number: signal.Signals | None
) -> None:
    end = "" if number is None else "signal.signal(2, signal.default_int_handler); time.sleep(600)"
    process = start_program(environment, end)
    if number is not None:
        process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not environment.processes())


def test_killed_supervisor_process_ends_the_service_and_is_relaunched(
    environment: Environment,
) -> None:
    supervisor = environment.supervisor()
    supervisor.start()
    pid = service_pid(supervisor)
    module = "embedserve_client.supervisor_process"
    [process] = [p for p in environment.processes() if module in p.info["cmdline"]]
    process.kill()
    wait_until(lambda: pid not in [process.pid for process in environment.processes()])
    wait_until(lambda: supervisor.status().healthy and service_pid(supervisor) != pid)


def test_calls_survive_a_kill_of_the_service(environment: Environment) -> None:
    supervisor = environment.supervisor()
    supervisor.start()
    failures: list[str] = []
    done = threading.Semaphore(0)

    # Only the timeout bounds the retries.
    options = {"timeout_s": 120.0, "max_retries": sys.maxsize, "max_retry_delay_s": 0.5}
    with Client(supervisor.url, **options) as client:  # type: ignore[arg-type]

        def embed_every_eighth(first: int) -> None:
            for i in range(first, 1000, 8):
                text = f"call {i}"
                try:
                    if not np.array_equal(client.embed(text), vector(text)):
                        failures.append(text)
                except EmbedError as error:
                    failures.append(repr(error))
                done.release()

        threads = [threading.Thread(target=embed_every_eighth, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            done.acquire()
        os.kill(service_pid(supervisor), signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert failures == []
    assert supervisor.status().restarts == 1
