"""Ray Data against the running service, as jobs of its own Ray; nothing here needs a CPU."""

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
os.environ["RAY_ADDRESS"] = sys.argv.pop(1)  # here that of the dashboard
from ray.scripts.scripts import main
main()
"""
BEGIN = """
import json, sys
import numpy as np
import ray
ray.init(log_to_driver=False)
from embedserve_client.errors import EmbedError
from embedserve_client.ray import Embedder, embed_dataset
texts = json.load(open(sys.argv[1]))
rows = ray.data.from_items([{"row": i, "text": text} for i, text in enumerate(texts)])
"""
IN_ORDER = """
@ray.remote(num_cpus=ray.available_resources().get("CPU", 0))
class AllThatIsFree:
    def wait(self):
        pass

held = AllThatIsFree.remote()
ray.get(held.wait.remote())
out = embed_dataset(rows, "text", batch_size=100, concurrency=2).take_all()
assert [row["row"] for row in out] == list(range(len(texts)))
assert [row["text"] for row in out] == texts
np.save(sys.argv[2], np.stack([row["embedding"] for row in out]))
"""
BY_HAND = """
embedder = Embedder(into="vector", input_type="query")
print(embedder.space)
batch = embedder({"text": np.array(texts), "row": np.arange(len(texts))})
assert list(batch) == ["text", "row", "vector"]
np.save(sys.argv[2], batch["vector"])
assert embedder({"text": np.array([])})["vector"].shape == (0, batch["vector"].shape[1])
for call in (
    lambda: embed_dataset(rows, "text", app="another"),
    lambda: embed_dataset(rows, "words"),
    lambda: embed_dataset(rows, "text", space="f00d-fp32"),
    lambda: embedder({"text": ["a", ""]}),
    lambda: Embedder(model="another")({"text": ["a"]}),
    lambda: Embedder(timeout_s=1e-4)({"text": ["a"]}),
):
    try:
        call()
    except (EmbedError, ValueError) as error:
        print(type(error).__name__, getattr(error, "status", ""), error)
"""
MORE_THAN_FITS = """
from concurrent.futures import ThreadPoolExecutor
from embedserve_client.errors import Overloaded

class Counting(Embedder):
    refused = 0

    def _ask(self, *given):
        try:
            return super()._ask(*given)
        except Overloaded as error:
            assert error.retry_after_s >= 1
            self.refused += 1
            raise

embedder = Counting(timeout_s=100)
batches = [{"text": part} for part in np.split(np.array(texts), 4)]
with ThreadPoolExecutor(4) as pool:
    made = [batch["embedding"] for batch in pool.map(embedder, batches)]
np.save(sys.argv[2], np.concatenate(made))
print(embedder.refused)
"""


def texts(n: int, words: int = 3) -> list[str]:
    """New ones, that nobody has cached."""
    return [f"{time.time_ns()} row {i} " + "a few words " * words for i in range(n)]


def over_http(service: Service, texts: list[str], **fields: object) -> Float32:
    reply = httpx2.post(
        f"{service.url}/v1/embeddings",
        json={"input": texts, **fields},
        headers={"accept": "application/octet-stream"},
        timeout=120,
    )
    reply.raise_for_status()
    return np.frombuffer(reply.content, "<f4").reshape(len(texts), -1)


def as_job(service: Service, tmp_path: Path, code: str, texts: list[str]) -> tuple[str, Any]:
    """What a job prints, and the array that it saves."""
    given, made = tmp_path / "texts.json", tmp_path / "vectors.npy"
    given.write_text(json.dumps(texts), "utf-8")
    printed = service.command("-c", BEGIN + code, str(given), str(made))
    return printed, np.load(made)


def test_a_dataset_gets_the_vectors_of_http_in_order(service: Service, tmp_path: Path) -> None:
    asked = texts(530)
    _, vectors = as_job(service, tmp_path, IN_ORDER, asked)
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == over_http(service, asked).tobytes()


def test_an_embedder_by_hand_and_what_it_refuses(service: Service, tmp_path: Path) -> None:
    asked = texts(20)
    printed, vectors = as_job(service, tmp_path, BY_HAND, asked)
    assert vectors.tobytes() == over_http(service, asked, input_type="query").tobytes()
    space, *errors = printed.splitlines()[-7:]
    assert space == httpx2.get(f"{service.url}/info", timeout=30).json()["space"]
    for told, expected in zip(
        errors,
        [
            "NotRunning  No application 'another' runs on this Ray",
            "ValueError  There is no column 'words'. Name one of: 'row', 'text'.",
            f"SpaceMismatch  'embedserve' gives vectors of the space {space}",
            "HTTPError 400 Text 1 is empty.",
            "HTTPError 404 ",
            "Timeout  ",
        ],
        strict=True,
    ):
        assert told.startswith(expected)


def test_more_than_fits_is_waited_for(service: Service, tmp_path: Path) -> None:
    asked = texts(600, words=30)  # some 100 tokens each
    assert 100 * len(asked) == 2 * USER_CONFIG["Embedder"]["max_queued_tokens"]
    refused, vectors = as_job(service, tmp_path, MORE_THAN_FITS, asked)
    assert int(refused.splitlines()[-1]) > 0
    assert vectors.tobytes() == over_http(service, asked).tobytes()


def test_the_example_as_a_job(service: Service, tmp_path: Path) -> None:
    asked = texts(150)
    file, out = tmp_path / "rows.jsonl", tmp_path / "embedded"
    file.write_text("".join(json.dumps({"n": i, "t": t}) + "\n" for i, t in enumerate(asked)))
    dashboard = service.launch._dashboard
    assert dashboard
    submit = ("-c", SUBMIT, dashboard, "job", "submit")
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
        printed = service.command(*submit, *job, *options)
    except AssertionError as error:
        if "No available agent" in str(error):
            pytest.skip("Another Ray on this machine has the port on which jobs are taken in.")
        raise
    assert f"150 rows in {out}" in printed
    table = pyarrow.parquet.read_table(out)
    assert table.column("n").to_pylist() == list(range(150))
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    assert vectors.tobytes() == over_http(service, asked).tobytes()
