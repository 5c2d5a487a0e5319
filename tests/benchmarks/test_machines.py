"""Machines in namespaces have a network and files of their own, and nothing is left of them."""

import subprocess
import sys

import pytest

from benchmarks.machines import unavailable_reason
from tests.repo.source import ROOT

_PROGRAM = """
import socket, sys, tempfile, time
from pathlib import Path
from benchmarks.machines import MACHINE_DIR, Machine, isolate
isolate()
python = sys.executable
serve = (
    "import http.server as h, sys; h.test(h.SimpleHTTPRequestHandler, bind=sys.argv[1], port=8000)"
)
with tempfile.TemporaryDirectory() as directory:
    one, other = (Machine(name, n, {}) for n, name in enumerate(("one", "other"), 1))
    for machine in (one, other):
        machine.start([python, "-c", serve, machine.address], Path(directory, machine.name))
        while "Serving" not in Path(directory, machine.name).read_text():
            assert machine.is_running
            time.sleep(0.02)
    print(one.call(["hostname"]).strip(), other.call(["hostname"]).strip())
    one.call(["touch", f"{MACHINE_DIR}/file"])
    print(Path(MACHINE_DIR, "file").exists(), other.call(["ls", str(MACHINE_DIR)]).split())
    fetch = [python, "-c", "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=9)"]
    other.call([*fetch, f"http://{one.address}:8000"])
    print("reached")
    one.kill()
    print(one.is_running, one.processes())
    connection = socket.create_connection((other.address, 8000), timeout=0.5)
    other.disconnect()
    connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    try:
        connection.recv(1)
    except TimeoutError:
        print("silent")
"""


def test_machines() -> None:
    if reason := unavailable_reason():
        pytest.skip(f"Several machines can't be run here: {reason}.")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "one other",
        "False ['hosts', 'nsswitch.conf']",
        "reached",
        "False []",
        "silent",
    ], done.stderr
    interfaces = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert "cable1" not in interfaces
