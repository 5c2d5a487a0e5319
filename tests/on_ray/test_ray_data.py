"""Ray Data jobs on the service's Ray. They reserve no CPU."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet
import pytest

from serve_app.types import Float32
from tests.on_ray.conftest import ROOT, USER_CONFIG, Service

EXAMPLE = "examples/embed_rows.py"
SUBMIT = """
import os, sys
os.environ["RAY_ADDRESS"] = sys.argv.pop(1)  # for `ray job submit` the dashboard's URL
from ray.scripts.scripts import main
main()
"""
PREAMBLE = """
import json, sys
import numpy as np
import ray
ray.init(log_to_driver=False)
from embedserve_client.errors import EmbedError
from embedserve_client.ray import Embedder, embed_dataset
texts = json.load(open(sys.argv[1]))
rows = ray.data.from_items([{"row": i, "text": text} for i, text in enumerate(texts)])
"""
DATASET_JOB = """
@ray.remote(num_cpus=ray.available_resources().get("CPU", 0))
class AllFreeCPUs:
    def ready(self):
        pass

blocker = AllFreeCPUs.remote()
ray.get(blocker.ready.remote())
out = embed_dataset(rows, "text", batch_size=100, concurrency=2).take_all()
assert [row["row"] for row in out] == list(range(len(texts)))
assert [row["text"] for row in out] == texts
np.save(sys.argv[2], np.stack([row["embedding"] for row in out]))
"""
EMBEDDER_JOB = """
embedder = Embedder(output_column="vector", input_type="query")
print(embedder.space)
batch = embedder({"text": np.array(texts), "row": np.arange(len(texts))})
assert list(batch) == ["text", "row", "vector"]
np.save(sys.argv[2], batch["vector"])
assert embedder({"text": np.array([])})["vector"].shape == (0, batch["vector"].shape[1])
for call in (
    lambda: embed_dataset(rows, "text", app_name="another"),
    lambda: embed_dataset(rows, "words"),
    lambda: embed_dataset(rows, "text", expected_space="f00d-fp32"),
    lambda: embedder({"text": ["a", ""]}),
    lambda: Embedder(model="another")({"text": ["a"]}),
    lambda: Embedder(timeout_s=1e-4)({"text": [f"{text} again" for text in texts]}),  # not cached
):
    try:
        call()
    except (EmbedError, ValueError) as error:
        print(type(error).__name__, getattr(error, "status", ""), error)
"""
OVERLOAD_JOB = """
from concurrent.futures import ThreadPoolExecutor
embedder = Embedder(timeout_s=100)
batches = [{"text": part} for part in np.split(np.array(texts), 4)]
with ThreadPoolExecutor(4) as pool:
    arrays = [batch["embedding"] for batch in pool.map(embedder, batches)]
np.save(sys.argv[2], np.concatenate(arrays))
"""


def new_texts(n: int, repeats: int = 3) -> list[str]:
    """Returns texts that aren't cached."""
    return [f"{time.time_ns()} row {i} " + "a few words " * repeats for i in range(n)]


def embed_over_http(service: Service, texts: list[str], **fields: object) -> Float32:
    reply = httpx2.post(
        f"{service.url}/v1/embeddings",
        json={"input": texts, **fields},
        headers={"accept": "application/octet-stream"},
        timeout=120,
    )
    reply.raise_for_status()
    return np.frombuffer(reply.content, "<f4").reshape(len(texts), -1)


def run_job(service: Service, tmp_path: Path, code: str, texts: list[str]) -> tuple[str, Any]:
    """Runs a job; returns its output and the array that it saves."""
    texts_file, vectors_file = tmp_path / "texts.json", tmp_path / "vectors.npy"
    texts_file.write_text(json.dumps(texts), "utf-8")
    output = service.run_python("-c", PREAMBLE + code, str(texts_file), str(vectors_file))
    return output, np.load(vectors_file)


def test_a_dataset_gets_the_same_vectors_as_over_http_in_order(
    service: Service, tmp_path: Path
) -> None:
    texts = new_texts(530)
    _, vectors = run_job(service, tmp_path, DATASET_JOB, texts)
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == embed_over_http(service, texts).tobytes()


def test_an_embedder_and_its_errors(service: Service, tmp_path: Path) -> None:
    texts = new_texts(20)
    output, vectors = run_job(service, tmp_path, EMBEDDER_JOB, texts)
    assert vectors.tobytes() == embed_over_http(service, texts, input_type="query").tobytes()
    space, *errors = output.splitlines()[-7:]
    assert space == httpx2.get(f"{service.url}/info", timeout=30).json()["space"]
    for error, expected in zip(
        errors,
        [
            "ServiceNotRunningError  There is no application 'another' on this Ray cluster",
            "ValueError  There is no column 'words'. Use one of: 'row', 'text'.",
            f"SpaceMismatchError  'embedserve' returns vectors in space {space}",
            "HTTPError 400 Text 1 is empty.",
            "HTTPError 404 ",
            "RequestTimeoutError  ",
        ],
        strict=True,
    ):
        assert error.startswith(expected)


async def test_an_overloaded_service_is_retried(service: Service, tmp_path: Path) -> None:
    texts = new_texts(600, repeats=30)  # about 100 tokens each
    assert 100 * len(texts) == 2 * USER_CONFIG["Embedder"]["max_queued_tokens"]
    rejected = await service.counter("embedserve_refused", at_least=0)
    _, vectors = run_job(service, tmp_path, OVERLOAD_JOB, texts)
    assert await service.counter("embedserve_refused", at_least=rejected + 1) > rejected
    assert vectors.tobytes() == embed_over_http(service, texts).tobytes()


def test_the_example_as_a_submitted_job(service: Service, tmp_path: Path) -> None:
    texts = new_texts(150)
    file, out = tmp_path / "rows.jsonl", tmp_path / "embedded"
    file.write_text("".join(json.dumps({"n": i, "t": t}) + "\n" for i, t in enumerate(texts)))
    dashboard_url = service.process.dashboard_url
    assert dashboard_url
    submit = ("-c", SUBMIT, dashboard_url, "job", "submit")
    job = ("--working-dir", str(ROOT / "clients" / "python"), "--", sys.executable, EXAMPLE)
    options = (
        "--column",
        "t",
        "--batch-size",
        "40",
        "--concurrency",
        "2",
        "--input",
        str(file),
        "--output",
        str(out),
    )
    try:
        output = service.run_python(*submit, *job, *options)
    except AssertionError as error:
        if "No available agent" in str(error):
            pytest.skip("Another Ray on this machine uses the port of the job agent.")
        raise
    assert f"150 rows in {out}" in output
    table = pyarrow.parquet.read_table(out)
    assert table.column("n").to_pylist() == list(range(150))
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    assert vectors.tobytes() == embed_over_http(service, texts).tobytes()
