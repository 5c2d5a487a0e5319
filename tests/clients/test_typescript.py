"""The TypeScript client: type check, unit tests, package size and the NestJS example."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import pytest

from tests.clients.app_server import AppServer
from tests.clients.node import PACKAGE, environment, npm

EXAMPLE = PACKAGE / "examples" / "nestjs"


@pytest.fixture(scope="module", autouse=True)
def _built_package() -> None:
    npm(PACKAGE, "ci")
    npm(PACKAGE, "run", "build")


def test_types_tests_and_size() -> None:
    report = npm(PACKAGE, "test")
    assert "\n# fail 0\n" in report
    assert "a killed standalone service is restarted\n" in report  # not skipped
    assert "a sidecar by its script: start, vectors, crash, restart, stop\n" in report
    npm(PACKAGE, "run", "size")


def test_the_nestjs_example_searches(shared_server: AppServer, tmp_path: Path) -> None:
    shared_server.backend.error = None
    # The example depends on the package two directories above it.
    for name in ("package.json", "dist"):
        (tmp_path / name).symlink_to(PACKAGE / name)
    directory = tmp_path / "examples" / "nestjs"
    shutil.copytree(EXAMPLE, directory, ignore=shutil.ignore_patterns("node_modules", "dist"))
    npm(directory, "ci")
    npm(directory, "run", "build")
    with _application(directory, shared_server.url) as url:
        query = urlencode({"q": "Export your data as CSV in the settings."})
        with urlopen(f"{url}/search?{query}") as reply:
            found = json.load(reply)
    assert found["page"] == "Export your data as CSV in the settings."


@contextmanager
def _application(directory: Path, service_url: str) -> Iterator[str]:
    """Runs the application with a service; yields its URL. SIGTERM ends it and its worker."""
    # The command `node` of the virtual environment starts another process, without its signals.
    node = subprocess.check_output(["node", "-p", "process.execPath"], env=environment(), text=True)
    process = subprocess.Popen(
        [node.strip(), "dist/main.js"],
        cwd=directory,
        env=environment(EMBEDSERVE_URL=service_url, PORT="0"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        worker = psutil.Process(process.pid).children()
        process.terminate()
        process.communicate(timeout=30)
    assert len(worker) == 1
    assert psutil.wait_procs(worker, timeout=30)[1] == []
