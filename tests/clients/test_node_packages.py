"""The packages `ollama` and `openai` of npm; of the latter, the client `AzureOpenAI`."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serve_app import __version__
from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import (
    DIM,
    MAX_TOKENS,
    MODEL,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    token_count,
)
from tests.clients.node import environment, npm

PACKAGES = Path(__file__).with_name("node_packages")
REDUCED = 16


@pytest.fixture(scope="module")
def results(shared_server: AppServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of `requests.mjs`, by client."""
    shared_server.backend.error = None
    directory = tmp_path_factory.mktemp("node") / "packages"
    shutil.copytree(PACKAGES, directory, ignore=shutil.ignore_patterns("node_modules"))
    npm(directory, "ci")
    arguments = {
        "url": shared_server.url,
        "model": "hashing",
        "texts": TEXTS,
        "longText": "word " * (MAX_TOKENS + 1),
    }
    process = subprocess.run(
        ["node", "requests.mjs", json.dumps(arguments)],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def test_ollama_embeds(results: dict[str, Any]) -> None:
    found, vectors = results["ollama"], expected_vectors(*TEXTS)
    assert found["embed"]["model"] == "hashing"
    assert equal_vectors(found["embed"]["embeddings"], vectors)
    assert found["embed"]["prompt_eval_count"] == token_count(*TEXTS)
    assert equal_vectors(found["reduced"]["embeddings"], truncate_dimensions(vectors, REDUCED))
    assert equal_vectors(found["embeddings"]["embedding"], vectors[0])


def test_ollama_describes_the_model(results: dict[str, Any]) -> None:
    found = results["ollama"]
    listed = found["list"]["models"]
    assert [model["model"] for model in listed] == [f"{MODEL}:latest", "hashing:latest"]
    assert {tuple(model["capabilities"]) for model in listed} == {("embedding",)}
    assert {model["details"]["embedding_length"] for model in listed} == {DIM}
    assert [model["model"] for model in found["ps"]["models"]] == [f"{MODEL}:latest"]
    assert found["show"]["model_info"]["embedserve.embedding_length"] == DIM
    assert found["version"] == {"version": __version__}


def test_ollama_reports_errors(results: dict[str, Any]) -> None:
    found = results["ollama"]
    assert found["unknownModel"]["status"] == 404
    assert "isn't served here" in found["unknownModel"]["message"]
    assert found["tooLong"]["status"] == 400
    assert "longer than" in found["tooLong"]["message"]


def test_azure_embeds(results: dict[str, Any]) -> None:
    found, vectors = results["azure"], expected_vectors(*TEXTS)
    assert equal_vectors(found["base64"], vectors)
    assert equal_vectors(found["float"], vectors)
    assert equal_vectors(found["reduced"], truncate_dimensions(vectors, REDUCED))


def test_azure_reports_an_unknown_deployment(results: dict[str, Any]) -> None:
    found = results["azure"]["unknownModel"]
    assert (found["status"], found["code"]) == (404, "DeploymentNotFound")
    assert "isn't served here" in found["message"]
