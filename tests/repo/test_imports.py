"""What importing a module loads: each library is loaded only where it is needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.source import ROOT


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("serve_app", {"ray", "torch", "starlette", "numpy"}),
        ("serve_app.models", {"ray", "torch", "transformers", "starlette"}),
        ("serve_app.web.app", {"ray", "torch", "transformers"}),
        ("serve_app.cache.lookup", {"ray", "torch", "starlette"}),
        ("serve_app.access.entrance", {"ray", "torch", "starlette"}),
        ("serve_app.providers", {"ray", "torch", "starlette", "openai", "cohere", "voyageai"}),
        ("serve_app.scheduler.scheduler", {"ray", "torch", "starlette"}),
        ("serve_app.model_prep.engine_selection", {"ray", "torch", "openvino", "tokenizers"}),
        ("serve_app.engines.hashing_engine", {"ray", "torch", "openvino", "tokenizers"}),
        ("serve_app.autoscale", {"ray", "torch", "numpy"}),
        ("serve_app.command.main", {"ray", "torch", "starlette"}),
        ("embedserve_benchmarks.command", {"ray", "torch", "matplotlib"}),
        ("embedserve_client", {"httpx2", "numpy", "orjson"}),
        ("embedserve_client.model_files", {"httpx2", "numpy"}),
        ("embedserve_client.client", {"torch", "ray", "faiss", "pyarrow", "rich", "serve_app"}),
        ("embedserve_client.supervisor", {"torch", "ray", "serve_app"}),
        ("embedserve_client.search", {"torch", "ray", "faiss", "serve_app"}),
        ("embedserve_client.compat.ipc", {"torch", "ray", "faiss", "rich", "serve_app"}),
        ("embedserve_client.command.main", {"torch", "ray", "faiss", "pyarrow", "serve_app"}),
    ],
)
def test_importing_a_module_loads_no_heavy_library(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert unwanted & set(modules.stdout.split()) == set()


def test_openvino_reports_nothing_to_intel(tmp_path: Path) -> None:
    """Its telemetry first writes an id of the machine below the home directory."""
    code = "import serve_app.engines.openvino_engine, openvino.tools.ovc"
    silent = {"CI", "TF_BUILD", "JENKINS_URL"}  # it would be so without our help
    env = {name: value for name, value in os.environ.items() if name not in silent}
    subprocess.run(
        [sys.executable, "-c", code], env={**env, "HOME": str(tmp_path)}, check=True, cwd=ROOT
    )
    assert not [*tmp_path.iterdir()]
