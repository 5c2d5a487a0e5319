"""The TypeScript client against the running service: its tests, a browser and the examples."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serve_app.config import IngressSettings
from tests.clients.node import PACKAGE, environment, npm
from tests.clients.test_early_replies import FETCH, REFUSALS
from tests.on_ray.conftest import Service
from tests.on_ray.test_clients_readme import BLOCKS, code_block, with_service_url

#: Exit code of the browser test without Chromium.
NO_CHROMIUM = 77


@pytest.fixture(scope="module")
def program_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds and installs the client by README's commands; returns the program's directory."""
    directory = tmp_path_factory.mktemp("node")
    source = directory / "typescript"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("node_modules", "dist", "build"))
    build = code_block("bash", "npm ci").replace("cd clients/typescript", f"cd {source}")
    (directory / "package.json").write_text('{"type": "module", "private": true}')
    for command in (build, f"npm install {source}/*.tgz openai"):
        subprocess.run(
            ["bash", "-ec", command], cwd=directory, env=environment(), check=True, timeout=300
        )
    return directory


@pytest.mark.parametrize(
    ("excerpt", "output"),
    [("embedserve-client", r"2 384 \w{16}-\w+\n"), ("OpenAI", "384\n")],
    ids=["embedserve", "openai"],
)
def test_the_examples(service: Service, program_dir: Path, excerpt: str, output: str) -> None:
    (program_dir / "example.mjs").write_text(with_service_url(service, code_block("js", excerpt)))
    completed = subprocess.run(
        ["node", "example.mjs"],
        cwd=program_dir,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert re.fullmatch(output, completed.stdout), completed.stdout


def test_each_javascript_example_is_tested() -> None:
    assert [kind for kind, _ in BLOCKS].count("js") == 2


def test_the_clients_tests_pass(service: Service, program_dir: Path) -> None:
    npm(program_dir / "typescript", "exec", "tsc", "--", "-p", "test")
    completed = subprocess.run(
        ["node", "--test", "build/test/real.test.js"],
        cwd=program_dir / "typescript",
        env=environment(EMBEDSERVE_URL=service.url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout
    assert "skipped 0" in completed.stdout


def test_fetch_gets_the_status_although_the_proxy_buffers_its_body(service: Service) -> None:
    cases = json.dumps([(path, media_type) for path, media_type, _ in REFUSALS])
    max_bytes = str(IngressSettings().max_body_bytes)
    completed = subprocess.run(
        ["node", "--input-type=module", "-e", FETCH, service.url, cases, max_bytes],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout) == [status for _, _, status in REFUSALS] * 3


def test_a_page_in_a_browser(service: Service, program_dir: Path) -> None:
    completed = subprocess.run(
        ["node", "test/browser/run.mjs"],
        cwd=program_dir / "typescript",
        env=environment(EMBEDSERVE_URL=service.url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if completed.returncode == NO_CHROMIUM:
        pytest.skip(completed.stdout.strip() or "Chromium isn't installed.")
    assert completed.returncode == 0, completed.stdout + completed.stderr
