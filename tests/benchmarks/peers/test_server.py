"""The processes of servers, with a fake server."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.paths import ROOT
from benchmarks.peers import floor, tei, vllm
from benchmarks.peers.base import Peer, PeerError
from benchmarks.peers.server import ServerProcess

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


def test_waiting_for_a_server_times_out() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-c", "import time; time.sleep(60)"])
    with ServerProcess(peer) as server, pytest.raises(PeerError, match="no vector after"):
        server.wait_until_ready(timeout_s=0.5)


def test_the_floor_returns_a_constant_response() -> None:
    with ServerProcess(floor.PEER) as server:
        server.wait_until_ready()
        assert server.embed(["a"]).shape == (1, 0)


@pytest.mark.parametrize(
    ("peer", "program", "flag"),
    [(tei.PEER, "text-embeddings-router", "--port"), (vllm.PEER, "vllm", "--port")],
    ids=["tei", "vllm"],
)
def test_a_program_on_the_path_is_measured(
    peer: Peer, program: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    if shutil.which(program) is None:
        assert peer.unavailable_reason() is not None
    stand_in = tmp_path / program
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"port = sys.argv[sys.argv.index('{flag}') + 1]\n"
        f"os.execv(sys.executable, [sys.executable, '-m', '{FAKE_SERVER}', port])\n"
    )
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    assert peer.unavailable_reason() is None
    with ServerProcess(peer) as server:
        server.wait_until_ready()
        assert server.embed(["a"]).shape == (1, 8)


def test_importing_the_experiments_loads_no_model_library() -> None:
    code = "import sys, benchmarks.experiments; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert {"torch", "sentence_transformers", "transformers"}.isdisjoint(modules)
