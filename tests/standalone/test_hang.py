"""An engine that hangs can't keep the process alive, nor a supervisor from replacing it."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from serve_app.command.ports import free_port

#: The service, with an engine that hangs as soon as a file exists.
PROGRAM = """
import sys, time
from pathlib import Path
from embedserve_client.command.main import main
from serve_app.engines.hashing_engine import HashingEngine

run = HashingEngine.run

def run_or_hang(*args, **options):
    while Path(sys.argv[1]).exists():
        print("hangs", flush=True)
        time.sleep(1)
    return run(*args, **options)

HashingEngine.run = run_or_hang
sys.exit(main(sys.argv[2:]))
"""


class Hanging(NamedTuple):
    """A service whose engine hangs until the file is gone, and the client that waits for it."""

    process: "subprocess.Popen[str]"
    file: Path
    client: socket.socket


def read_until(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout
    while text not in (line := process.stdout.readline()):
        assert line, "The service ended."


@pytest.fixture
def hanging(tmp_path: Path, stall_timeout_s: float) -> Iterator[Hanging]:
    args = {"model": {"name": "words", "source": "hashing:64"}, "cache": {"url": "none"}}
    deployment = {"name": "EmbedServer", "user_config": {"stall_timeout_s": stall_timeout_s}}
    application = {"name": "embedserve", "args": args, "deployments": [deployment]}
    config, hang, port = tmp_path / "config.yaml", tmp_path / "hang", free_port()
    http = {"host": "127.0.0.1", "port": port}
    config.write_text(yaml.safe_dump({"http_options": http, "applications": [application]}))
    command = ["serve", "--standalone", "--drain-timeout", "1", str(config)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(hang), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        read_until(process, "ready")
        hang.touch()
        with socket.create_connection(("127.0.0.1", port)) as client:
            body = json.dumps({"input": "a text"})
            head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            read_until(process, "hangs")
            client.settimeout(60)
            yield Hanging(process, hang, client)
        process.kill()


@pytest.mark.parametrize("stall_timeout_s", [0.5])
def test_a_batch_that_takes_too_long_ends_the_process(hanging: Hanging) -> None:
    output, _ = hanging.process.communicate(timeout=60)
    assert hanging.process.returncode == 1
    assert "embedserve: One batch has been running for" in output


@pytest.mark.parametrize("stall_timeout_s", [3600.0])
def test_a_hanging_batch_does_not_delay_the_end(hanging: Hanging) -> None:
    hanging.process.send_signal(signal.SIGTERM)
    with hanging.client.makefile() as reply:  # until the service closes the connection
        head, _, body = reply.read().partition("\n\n")
    assert head.startswith("HTTP/1.1 503")
    assert "retry-after: 1" in head
    assert "shutting down" in json.loads(body)["error"]["message"]
    output, _ = hanging.process.communicate(timeout=60)
    assert hanging.process.returncode == 0
    assert "stopped" in output


@pytest.mark.parametrize("stall_timeout_s", [2.0])
def test_a_process_that_was_stopped_computes_its_batch(hanging: Hanging) -> None:
    hanging.process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    hanging.file.unlink()
    hanging.process.send_signal(signal.SIGCONT)
    assert hanging.client.recv(4096).startswith(b"HTTP/1.1 200")
