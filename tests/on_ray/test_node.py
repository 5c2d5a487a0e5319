"""The TypeScript client against the running service: its own tests, a browser, and the examples."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.node import PACKAGE, environment, npm
from tests.on_ray.conftest import Service
from tests.on_ray.test_clients_readme import BLOCKS, at, block

#: How the browser's test says that there is none.
_NO_CHROMIUM = 77


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a program, in which a new user has built and installed the client."""
    folder = tmp_path_factory.mktemp("node")
    source = folder / "typescript"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("node_modules", "dist", "build"))
    words = block("bash", "npm ci").replace("cd clients/typescript", f"cd {source}")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    for command in (words, f"npm install {source}/*.tgz openai"):
        subprocess.run(
            ["bash", "-ec", command], cwd=folder, env=environment(), check=True, timeout=300
        )
    return folder


@pytest.mark.parametrize(
    ("words", "shown"),
    [("EmbedClient", r"2 384 \w{16}-\w+\n"), ("OpenAI", "384\n")],
    ids=["ours", "openai"],
)
def test_the_examples(service: Service, home: Path, words: str, shown: str) -> None:
    (home / "example.mjs").write_text(at(service, block("js", words)))
    done = subprocess.run(
        ["node", "example.mjs"],
        cwd=home,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(shown, done.stdout), done.stdout


def test_there_are_no_other_examples() -> None:
    assert [kind for kind, _ in BLOCKS].count("js") == 2


def test_its_own_tests(service: Service, home: Path) -> None:
    npm(home / "typescript", "exec", "tsc", "--", "-p", "tsconfig.test.json")
    done = subprocess.run(
        ["node", "--test", "build/tests/test/real.test.js"],
        cwd=home / "typescript",
        env=environment(EMBEDSERVE_URL=service.url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped 0" in done.stdout


def test_a_page_in_a_browser(service: Service, home: Path) -> None:
    done = subprocess.run(
        ["node", "test/browser/run.mjs"],
        cwd=home / "typescript",
        env=environment(EMBEDSERVE_URL=service.url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == _NO_CHROMIUM:
        pytest.skip(done.stdout.strip() or "There is no Chromium here.")
    assert done.returncode == 0, done.stdout + done.stderr
