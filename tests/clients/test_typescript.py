"""The TypeScript client: type check, unit tests, package size and the NestJS example."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.clients.app_server import AppServer
from tests.clients.kinds_server import (
    DENSE,
    DOCUMENTS,
    IMAGE,
    QUERY,
    RERANKER,
    TOLERANCE,
    KindsServer,
)
from tests.clients.node import PACKAGE, environment, npm

EXAMPLE = PACKAGE / "examples" / "nestjs"


@pytest.fixture(scope="module", autouse=True)
def _built_package() -> None:
    npm(PACKAGE, "ci")
    npm(PACKAGE, "run", "build")


def test_types_tests_and_size() -> None:
    report = npm(PACKAGE, "test", "--ignore-scripts")  # without another build before it
    assert "\n# fail 0\n" in report
    assert "a killed standalone service is restarted\n" in report  # not skipped
    assert "a sidecar by its script: start, vectors, crash, restart, stop\n" in report
    npm(PACKAGE, "run", "size", "--ignore-scripts")


def test_models_of_every_kind(kinds: KindsServer, tmp_path: Path) -> None:
    image, buffer = Image.new("RGB", (40, 30), "red"), io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "image.png").write_bytes(buffer.getvalue())
    arguments: dict[str, object] = {
        "query": QUERY,
        "documents": DOCUMENTS,
        "image": IMAGE,
        "reranker": RERANKER,
    }
    arguments["dense"] = DENSE
    (tmp_path / "calls.mjs").write_text(
        f"""
        import {{ readFileSync }} from "node:fs";
        import {{ Client }} from "{PACKAGE.as_posix()}/dist/index.js";
        const {{ query, documents, image, reranker, dense }} = {json.dumps(arguments)};
        const client = new Client({{ baseUrl: "{kinds.url}" }});
        const [vector] = await client.embedSparse(documents);
        const file = readFileSync("image.png");
        const named = await client.embedImages(file, {{ model: image }});
        console.log(JSON.stringify({{
          ranking: await client.rerank(query, documents),
          labels: await client.classify(documents),
          best: await client.rerank(query, documents, {{ topN: 2, model: reranker }}),
          indices: [...vector.indices],
          values: [...vector.values],
          images: [[...(await client.embedImages([file]))[0]], [...named]],
          dense: [...await client.embed(documents[0], {{ model: dense }})],
          info: (await client.info({{ model: reranker }})).model_id,
          isHealthy: await client.isHealthy({{ model: reranker }}),
        }}));"""
    )
    output = subprocess.run(
        ["node", "calls.mjs"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert output.returncode == 0, output.stderr
    reply = json.loads(output.stdout)
    assert [result["index"] for result in reply["ranking"]] == kinds.ranking
    assert [result["document"] for result in reply["best"]] == [
        DOCUMENTS[i] for i in kinds.ranking[:2]
    ]
    scores = [result["score"] for result in reply["ranking"]]
    np.testing.assert_allclose(scores, kinds.scores[kinds.ranking], atol=TOLERANCE)
    for row, expected in zip(reply["labels"], kinds.class_scores(DOCUMENTS), strict=True):
        by_label = {item["label"]: item["score"] for item in row}
        np.testing.assert_allclose([by_label["bad"], by_label["good"]], expected, atol=TOLERANCE)
    (sparse,) = kinds.sparse_vectors(DOCUMENTS[:1])
    assert reply["indices"] == np.flatnonzero(sparse).tolist()
    np.testing.assert_allclose(reply["values"], sparse[reply["indices"]], atol=1e-4)
    (expected,) = kinds.vectors(IMAGE, [image])
    np.testing.assert_allclose(reply["images"], [expected, expected], atol=TOLERANCE)
    np.testing.assert_allclose(
        [reply["dense"]], kinds.vectors(DENSE, DOCUMENTS[:1]), atol=TOLERANCE
    )
    assert (reply["info"], reply["isHealthy"]) == (RERANKER, True)


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
