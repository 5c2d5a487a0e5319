"""The examples of clients/README.md, unchanged, against the running service."""

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
README_URL = "http://127.0.0.1:8000"
#: Keeps libraries from network access, such as telemetry.
OFFLINE_ENV = {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

#: For each Python example an excerpt that identifies it, and a pattern of its output.
EXAMPLES = {
    "vectors.space.precision": r"\(2, 384\) float32 \w+\n\d\n",
    'fallback="local"': r"local \w{16}-fp32\n",
    "compat.ipc": r"torch.Size\(\[2, 384\]\)\n/(cats|dogs) 3\n",
    "embedder_service": r"384 (\S+) 0\.0\n2 0\.0\n\['\1'.*\]\n",
    "Supervisor": r"\(384,\)\n",
    "SpaceConflictError": r"True\n409\n",
    "VectorIndex.load": r"(\d\.\d+ (A dog|Cats).*\n){2}The stock market fell\.\n",
    "from openai": r"384\n",
    "langchain_openai": r"384\n",
    "llama_index": r"384\n",
    "haystack": r"384 384\n",
    "sqlite_vec": r"\['(A dog|Cats).*', '(A dog|Cats).*'\]\n",
}
ON_RAY = {"get_app_handle": r"\(2, 384\)", "embed_dataset": r"\(384,\)"}


def code_block(language: str, excerpt: str) -> str:
    """Returns the only code block in this language that contains an excerpt."""
    (text,) = [text for kind, text in BLOCKS if kind == language and excerpt in text]
    return str(text)


def with_service_url(service: Service, code: str) -> str:
    """Returns an example with the URL and port of the service."""
    port = service.url.rpartition(":")[2]
    return code.replace(README_URL, service.url).replace("port=8000", f"port={port}")


def run(command: list[str], cwd: Path, service: Service, path: str = "") -> str:
    """Runs a command with `path` first in PATH; returns its output."""
    completed = subprocess.run(
        command,
        cwd=cwd,
        env={
            **os.environ,
            **OFFLINE_ENV,
            "EMBEDSERVE_URL": service.url,
            "PATH": f"{path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_each_python_example_is_tested() -> None:
    python = [text for kind, text in BLOCKS if kind == "python"]
    # `tests/clients/test_kinds.py` runs the example that needs models of other kinds.
    excerpts = (*EXAMPLES, *ON_RAY, "client.rerank")
    assert len(python) == len(excerpts)
    for excerpt in excerpts:
        assert code_block("python", excerpt)


@pytest.mark.parametrize("excerpt", EXAMPLES)
def test_python(service: Service, tmp_path: Path, excerpt: str) -> None:
    code = with_service_url(service, code_block("python", excerpt))
    output = run([sys.executable, "-c", code], tmp_path, service)
    assert re.fullmatch(EXAMPLES[excerpt], output), output


@pytest.mark.parametrize("excerpt", ON_RAY)
def test_ray(service: Service, excerpt: str) -> None:
    output = service.run_driver(code_block("python", excerpt))
    assert re.search(rf"^{ON_RAY[excerpt]}$", output, re.MULTILINE), output


@pytest.fixture(scope="module")
def client_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs the client into a new environment by README's command; returns its bin directory."""
    venv = tmp_path_factory.mktemp("user") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=60)
    bin_dir = venv / "bin"
    subprocess.run(
        ["bash", "-c", code_block("bash", "pip install")],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
            "PIP_QUIET": "1",
        },
        check=True,
        timeout=300,
    )
    return bin_dir


def test_python_after_a_new_installation(
    service: Service, client_bin: Path, tmp_path: Path
) -> None:
    code = with_service_url(service, code_block("python", "vectors.space.precision"))
    python = str(client_bin / "python")
    assert "(2, 384) float32" in run([python, "-c", code], tmp_path, service)
    find_heavy = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'ray')])"
    assert run([python, "-c", find_heavy], tmp_path, service) == "[None, None]\n"


def test_shell_commands_after_a_new_installation(
    service: Service, client_bin: Path, tmp_path: Path
) -> None:
    path = str(client_bin)
    output = run(["bash", "-ec", code_block("bash", "embedserve health")], tmp_path, service, path)
    health, row = output.splitlines()
    assert health.startswith("ok  sentence-transformers/all-MiniLM-L6-v2")
    assert len(json.loads(row)["embedding"]) == 384
    assert np.load(tmp_path / "vectors.npy").shape == (2, 384)
    output = run(["bash", "-ec", code_block("bash", "embedserve stdio")], tmp_path, service, path)
    ready, answer = map(json.loads, output.splitlines())
    assert ready == {"status": "ready"}
    assert (answer["id"], len(answer["result"])) == ("1", 384)


def test_curl(service: Service, tmp_path: Path) -> None:
    output = run(
        ["bash", "-ec", with_service_url(service, code_block("bash", "curl"))], tmp_path, service
    )
    assert len(json.loads(output)["data"]) == 2
