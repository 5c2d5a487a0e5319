"""The examples of clients/README.md, as they stand there, against the running service."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.on_ray.conftest import ROOT, Service

README = (ROOT / "clients" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
HERE = "http://127.0.0.1:8000"
#: What a library would else send home, and whose names of hosts nobody can look up here.
AT_HOME = {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

#: Words of each example in Python, and what it prints.
EXAMPLES = {
    "vectors.space.precision": r"\(2, 384\) float32 \w+\n\d\n",
    'fallback="local"': r"local \w{16}-fp32\n",
    "Supervisor": r"\(384,\)\n",
    "VectorIndex": r"\d\.\d+ (A dog|Cats).*\n\d\.\d+ (A dog|Cats).*\nThe stock market fell\.\n",
    "from openai": r"384\n",
    "langchain_openai": r"384\n",
    "llama_index": r"384\n",
    "haystack": r"384 384\n",
    "sqlite_vec": r"\['(A dog|Cats).*', '(A dog|Cats).*'\]\n",
}
ON_RAY = {"get_app_handle": r"\(2, 384\)", "embed_dataset": r"\(384,\)"}


def block(language: str, words: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language and words in text]
    return str(found)


def at(service: Service, code: str) -> str:
    """The example, for where the service is."""
    port = service.url.rpartition(":")[2]
    return code.replace(HERE, service.url).replace("port=8000", f"port={port}")


def run(words: list[str], folder: Path, service: Service, path: str = "") -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env={
            **os.environ,
            **AT_HOME,
            "EMBEDSERVE_URL": service.url,
            "PATH": f"{path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_example_is_tried_here() -> None:
    python = [text for kind, text in BLOCKS if kind == "python"]
    assert len(python) == len(EXAMPLES) + len(ON_RAY)
    for words in (*EXAMPLES, *ON_RAY):
        assert block("python", words)


@pytest.mark.parametrize("words", EXAMPLES)
def test_python(service: Service, tmp_path: Path, words: str) -> None:
    code = at(service, block("python", words))
    printed = run([sys.executable, "-c", code], tmp_path, service)
    assert re.fullmatch(EXAMPLES[words], printed), printed


@pytest.mark.parametrize("words", ON_RAY)
def test_ray(service: Service, words: str) -> None:
    printed = service.drive(block("python", words))
    assert re.search(rf"^{ON_RAY[words]}$", printed, re.MULTILINE), printed


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment in which a new user has installed the client."""
    home = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True, timeout=60)
    folder = home / "venv" / "bin"
    subprocess.run(
        ["bash", "-c", block("bash", "pip install")],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_QUIET": "1",
        },
        check=True,
        timeout=300,
    )
    return folder


def test_a_new_user_in_python(service: Service, installed: Path, tmp_path: Path) -> None:
    code = at(service, block("python", "vectors.space.precision"))
    python = str(installed / "python")
    assert "(2, 384) float32" in run([python, "-c", code], tmp_path, service)
    others = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'ray')])"
    assert run([python, "-c", others], tmp_path, service) == "[None, None]\n"


def test_a_new_user_in_a_shell(service: Service, installed: Path, tmp_path: Path) -> None:
    path = str(installed)
    printed = run(["bash", "-ec", block("bash", "embedserve health")], tmp_path, service, path)
    health, row = printed.splitlines()
    assert health.startswith("ok  sentence-transformers/all-MiniLM-L6-v2")
    assert len(json.loads(row)["embedding"]) == 384
    assert np.load(tmp_path / "vectors.npy").shape == (2, 384)
    printed = run(["bash", "-ec", block("bash", "embedserve stdio")], tmp_path, service, path)
    ready, answer = map(json.loads, printed.splitlines())
    assert ready == {"status": "ready"}
    assert (answer["id"], len(answer["result"])) == ("1", 384)


def test_curl(service: Service, tmp_path: Path) -> None:
    printed = run(["bash", "-ec", at(service, block("bash", "curl"))], tmp_path, service)
    assert len(json.loads(printed)["data"]) == 2
