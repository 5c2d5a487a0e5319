"""A supervised service in a process of its own, since signals end it."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from serve_app.command.ports import free_port
from tests.command.test_service_process import SERVICE

PROGRAM = """
import sys
from serve_app.command.service_process import ServiceProcess
from serve_app.command.supervision import run_until_signal
port, *command = sys.argv[1:]
service = ServiceProcess(command, f"http://127.0.0.1:{port}")
run_until_signal(service, drain_timeout_s=30, until_eof=True)
"""


def supervise(*command: str, port: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(port), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def program() -> Iterator["subprocess.Popen[str]"]:
    port = free_port()
    with supervise(sys.executable, "-c", SERVICE, str(port), port=port) as program:
        yield program
        program.kill()


def wait_for(program: "subprocess.Popen[str]", label: str) -> str:
    assert program.stdout is not None
    for line in program.stdout:
        if line.split()[:1] == [label]:
            return line
    raise AssertionError(f"The program ended without the line {label!r}.")


def service_process(program: "subprocess.Popen[str]") -> psutil.Process:
    (service,) = psutil.Process(program.pid).children()
    return service


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None], ids=str)
def test_a_signal_or_the_end_of_the_input_drains_and_stops(
    program: "subprocess.Popen[str]", number: signal.Signals | None
) -> None:
    wait_for(program, "ready")
    service = service_process(program)
    if number is None:
        assert program.stdin is not None
        program.stdin.close()
    else:
        program.send_signal(number)
    wait_for(program, "draining")
    wait_for(program, "stopped")
    assert program.wait(30) == 0
    assert not service.is_running()


def test_a_service_that_ends_is_restarted(program: "subprocess.Popen[str]") -> None:
    wait_for(program, "ready")
    first = service_process(program)
    first.kill()
    assert "status -9" in wait_for(program, "failed")
    assert "1 of 5" in wait_for(program, "restart")
    wait_for(program, "ready")
    assert service_process(program) != first
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0


def test_a_first_start_that_fails_is_not_repeated() -> None:
    with supervise(sys.executable, "-c", "raise SystemExit(3)", port=free_port()) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        output, errors = program.stdout.read(), program.stderr.read()
        assert program.wait(60) != 0
    assert "restart" not in output
    assert "exited with status 3" in errors
