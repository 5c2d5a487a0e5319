"""The processes of servers, with a fake server."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.paths import CONFIG, ROOT
from benchmarks.peers import embedserve, floor, tei
from benchmarks.peers.base import Peer, PeerError, PeerProcess
from benchmarks.peers.server import ServerProcess
from serve_app.command.config_file import read_config

FAKE_SERVER = "tests.benchmarks.fake_server"
#: Starts the server as a child that it doesn't stop when it ends.
PARENT = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-m', '{FAKE_SERVER}', sys.argv[1]])\n"
    "time.sleep(60)"
)


def test_a_server_is_ready_when_it_returns_vectors() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-m", FAKE_SERVER, str(p.port)])
    with ServerProcess(peer) as server:
        server.wait_until_ready()
        assert server.embed(["a", "b"]).shape == (2, 8)
    assert not psutil.pid_exists(server.pid)


def test_children_of_a_server_stop_with_it() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-c", PARENT, str(p.port)])
    with ServerProcess(peer) as server:
        server.wait_until_ready()
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
    assert not any(child.is_running() for child in children)


def test_the_error_of_a_server_that_ends_is_reported() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-c", "raise SystemExit('no such model')"])
    with ServerProcess(peer) as server, pytest.raises(PeerError, match="no such model"):
        server.wait_until_ready()


def test_a_server_of_another_protocol_is_not_ready() -> None:
    no_http = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
    no_http += "while True: c, _ = s.accept(); c.recv(9999); c.sendall(b'\\0\\0\\n'); c.close()"
    peer = Peer("fake", "Fake", lambda p: [p.python, "-c", no_http, str(p.port)])
    with ServerProcess(peer) as server, pytest.raises(PeerError, match="no JSON over HTTP"):
        server.wait_until_ready(timeout_s=5)


def test_waiting_for_a_server_times_out() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-c", "import time; time.sleep(60)"])
    with ServerProcess(peer) as server, pytest.raises(PeerError, match="no vector after"):
        server.wait_until_ready(timeout_s=0.5)


def test_the_floor_returns_a_constant_response() -> None:
    with ServerProcess(floor.PEER) as server:
        server.wait_until_ready()
        assert server.embed(["a"]).shape == (1, 0)


def test_a_program_on_the_path_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer, program = tei.PEER, "text-embeddings-router"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    if shutil.which(program) is None:
        assert peer.unavailable_reason() is not None
    stand_in = tmp_path / program
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"port = sys.argv[sys.argv.index('--port') + 1]\n"
        f"os.execv(sys.executable, [sys.executable, '-m', '{FAKE_SERVER}', port])\n"
    )
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    assert peer.unavailable_reason() is None
    with ServerProcess(peer) as server:
        server.wait_until_ready()
        assert server.embed(["a"]).shape == (1, 8)


def test_the_configuration_of_embedserve_is_valid_and_has_the_precision(tmp_path: Path) -> None:
    peers = [
        *(embedserve.PEER, embedserve.COLOCATED, embedserve.STANDALONE),
        *(embedserve.SHARED_HITS, embedserve.COLOCATED_SHARED_HITS),
        *(embedserve.ONE_REPLICA, embedserve.REPLICA_PER_CORE),
    ]
    for peer in peers:
        command = peer.command(PeerProcess(sys.executable, 8000, tmp_path, "fp32"))
        config, application = read_config(Path(command[command.index("serve") + 1]))
        assert application.precision == "fp32"
        assert application.cache.data_dir == str(tmp_path / "cache")
        assert ("--standalone" in command) == (peer is embedserve.STANDALONE)
        assert not any("autoscaling_config" in d for d in model_deployments(config))


def model_deployments(config: dict[str, Any]) -> list[dict[str, Any]]:
    deployments: list[dict[str, Any]] = config["applications"][0]["deployments"]
    found = [d for d in deployments if d["name"] in ("Embedder", "EmbedServer")]
    assert found
    return found


def test_a_baseline_runs_the_code_of_its_checkout(tmp_path: Path) -> None:
    shutil.copy(CONFIG, tmp_path)
    module = tmp_path / "serve_app" / "command" / "main.py"
    module.parent.mkdir(parents=True)
    module.write_text("raise SystemExit('the code of the baseline')")
    with (
        ServerProcess(embedserve.baseline_peer(tmp_path)) as server,
        pytest.raises(PeerError, match="the code of the baseline"),
    ):
        server.wait_until_ready()


def test_importing_the_experiments_loads_no_model_library() -> None:
    code = "import sys, benchmarks.experiments; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert {"torch", "sentence_transformers", "transformers"}.isdisjoint(modules)
