"""A peer's process, with a server that answers at once."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.peers import floor, tei, vllm
from benchmarks.peers.base import Peer, PeerFailed
from benchmarks.peers.server import Server

ANSWERS = "tests.benchmarks.server"
#: Starts the server as a child and forgets it when it ends itself.
WITH_CHILD = (
    "import subprocess, sys, time\n"
    f"subprocess.Popen([sys.executable, '-m', '{ANSWERS}', sys.argv[1]])\n"
    "time.sleep(60)"
)


def test_it_is_ready_when_it_gives_vectors() -> None:
    peer = Peer("fake", "Fake", lambda at: [at.python, "-m", ANSWERS, str(at.port)])
    with Server(peer) as server:
        server.wait_until_ready()
        assert server.vectors(["a", "b"]).shape == (2, 8)
    assert not psutil.pid_exists(server.pid)


def test_its_children_end_with_it() -> None:
    peer = Peer("fake", "Fake", lambda at: [at.python, "-c", WITH_CHILD, str(at.port)])
    with Server(peer) as server:
        server.wait_until_ready()
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
    assert not any(child.is_running() for child in children)


def test_one_that_ends_says_why() -> None:
    peer = Peer("fake", "Fake", lambda at: [at.python, "-c", "raise SystemExit('no such model')"])
    with Server(peer) as server, pytest.raises(PeerFailed, match="no such model"):
        server.wait_until_ready()


def test_one_that_never_answers_is_given_up() -> None:
    peer = Peer("fake", "Fake", lambda at: [at.python, "-c", "import time; time.sleep(60)"])
    with Server(peer) as server, pytest.raises(PeerFailed, match="no vector after"):
        server.wait_until_ready(timeout_s=0.5)


def test_the_floor_answers_whatever_it_is_asked() -> None:
    with Server(floor.PEER) as server:
        server.wait_until_ready()
        assert server.vectors(["a"]).shape == (1, 0)


@pytest.mark.parametrize(
    ("peer", "program", "flag"),
    [(tei.PEER, "text-embeddings-router", "--port"), (vllm.PEER, "vllm", "--port")],
    ids=["tei", "vllm"],
)
def test_a_program_that_is_on_the_path_is_measured(
    peer: Peer, program: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    if shutil.which(program) is None:
        assert peer.missing() is not None
    stand_in = tmp_path / program
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"port = sys.argv[sys.argv.index('{flag}') + 1]\n"
        f"os.execv(sys.executable, [sys.executable, '-m', '{ANSWERS}', port])\n"
    )
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    assert peer.missing() is None
    with Server(peer) as server:
        server.wait_until_ready()
        assert server.vectors(["a"]).shape == (1, 8)


def test_the_harness_loads_no_model_itself() -> None:
    code = "import sys, benchmarks.experiments; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "sentence_transformers", "transformers"}.isdisjoint(shown.stdout.split())
