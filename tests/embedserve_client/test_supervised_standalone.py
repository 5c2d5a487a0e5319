"""Supervisors and `embedserve stdio --start` with the real service, `serve --standalone`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import yaml

from embedserve_client import Client, Supervisor
from serve_app.command.ports import free_port
from serve_app.config import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.models import resolve

ROOT = Path(__file__).parents[2]
MODEL = {"name": "hashing", "source": "hashing:64"}
EMBEDSERVE = (sys.executable, "-m", "embedserve_client.command.main")
PROGRAM = """
import sys
from pathlib import Path
from embedserve_client import Client, Supervisor
supervisor = Supervisor({port}, config={config!r}, shared_dir=Path({shared_dir!r}))
print(supervisor.start().pid, Client(supervisor.url).embed("a text").shape[0], flush=True)
sys.stdin.read()
"""


class Environment(NamedTuple):
    """A port, and a directory with the configuration and the cache of the service."""

    port: int
    path: Path

    @property
    def config(self) -> str:
        return str(self.path / "config.yaml")

    def supervisor(self) -> Supervisor:
        return Supervisor(self.port, config=self.config, shared_dir=self.path / "shared")

    def processes(self) -> list[str]:
        """Returns the command lines of all processes that mention the directory."""
        commands = (" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
        return [command for command in commands if str(self.path) in command]

    def start_program(self) -> "subprocess.Popen[str]":
        """Starts a program that uses the service until the end of its input."""
        code = PROGRAM.format(
            port=self.port, config=self.config, shared_dir=str(self.path / "shared")
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def environment() -> Iterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as directory:  # a socket's path
        environment = Environment(free_port(), Path(directory))
        args = {"model": MODEL, "cache": {"data_dir": f"{directory}/cache"}}
        config = yaml.safe_load((ROOT / "configs" / "one-machine.yaml").read_text("utf-8"))
        config["applications"][0]["args"] |= args
        Path(environment.config).write_text(yaml.safe_dump(config), "utf-8")
        yield environment
        wait_until(lambda: not environment.processes(), environment)


def wait_until(condition: Callable[[], object], environment: Environment) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, environment.processes()
        time.sleep(0.05)


def hashed(text: str) -> Any:
    engine = HashingEngine(resolve(ModelConfig.model_validate(MODEL)))
    return engine.run("embed", engine.tokenizer.encode([text]))[0]


def test_a_killed_service_is_restarted(environment: Environment) -> None:
    supervisor = environment.supervisor()
    with supervisor, Client(supervisor.url, timeout_s=60) as client:
        assert np.array_equal(client.embed("a text"), hashed("a text"))
        pid = supervisor.status().pid
        assert pid is not None
        assert "--standalone" in psutil.Process(pid).cmdline()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: supervisor.status().restarts == 1, environment)
        wait_until(lambda: supervisor.status().healthy, environment)
        assert supervisor.status().pid != pid
        assert np.array_equal(client.embed("a text"), hashed("a text"))
    assert supervisor.status().state == "absent"


def test_programs_share_a_service_that_ends_with_the_last_one(environment: Environment) -> None:
    programs = [environment.start_program() for _ in range(3)]
    lines = {program.stdout.readline() for program in programs if program.stdout}
    assert len(lines) == 1, lines  # one process, and its vectors
    pid, dim = map(int, lines.pop().split())
    assert dim == 64
    for program in programs[:2]:
        program.kill()
        program.communicate()
    supervisor = environment.supervisor()
    assert supervisor.start().pid == pid
    supervisor.stop()
    with Client(supervisor.url) as client:
        assert np.array_equal(client.embed("a text"), hashed("a text"))
    programs[2].kill()
    programs[2].communicate()
    wait_until(lambda: not psutil.pid_exists(pid), environment)


def test_the_service_ends_at_the_end_of_its_input(environment: Environment) -> None:
    command = [*EMBEDSERVE, "serve", environment.config, "--standalone", "--until-eof"]
    with subprocess.Popen(
        [*command, "--port", str(environment.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as service:
        assert service.stdout
        assert service.stdin
        while "ready" not in (line := service.stdout.readline()):
            assert line, "The service ended before it was ready."
        with Client(f"http://127.0.0.1:{environment.port}") as client:
            assert np.array_equal(client.embed("a text"), hashed("a text"))
        service.stdin.close()
        assert service.wait(60) == 0
        assert "stopped" in service.stdout.read()


def test_stdio_starts_a_service_and_stops_it(environment: Environment) -> None:
    with subprocess.Popen(
        [*EMBEDSERVE, "stdio", "--start", environment.config],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "EMBEDSERVE_URL": f"http://127.0.0.1:{environment.port}",
            "TMPDIR": str(environment.path),
        },
    ) as sidecar:
        request = {"id": "1", "command": "encode-batch", "params": {"texts": ["a text"]}}
        output, _ = sidecar.communicate(json.dumps(request) + "\n", timeout=120)
    ready, reply = map(json.loads, output.splitlines())
    assert ready == {"status": "ready"}
    assert np.array_equal(np.float32(reply["result"]), [hashed("a text")])
    assert sidecar.returncode == 0
