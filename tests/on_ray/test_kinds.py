"""A service with a model of each kind on Ray: outputs over HTTP, and deployments of their own.

A test runs on `separate` deployments unless a mark names others.
"""

import asyncio
import base64
import io
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)

from serve_app.command.checked_service import CheckedService
from serve_app.command.served_models import served_models
from serve_app.config import MINILM
from serve_app.model_prep.artifact_cache import list_artifacts
from serve_app.models import model_dir
from tests.on_ray.conftest import (
    COLOCATED,
    SEPARATE,
    Service,
    running_service,
    service_config,
)
from tests.tiny_models import BUILDERS

TEXTS = ["a short text", "another one, which is longer than the first", "unrelated words"]
QUERY = TEXTS[0]
ON_RAY = pytest.mark.parametrize("kinds", [SEPARATE, COLOCATED], indirect=True)
#: The deployment of each kind in `separate`; all others share one.
DEPLOYMENTS = {"minilm": "Embedder", "reranker": "Reranker"}
SHARED = "Others"
ATOL = 1e-4


class Kinds:
    """The running service, and the models of the library that it serves."""

    def __init__(self, service: Service, folders: dict[str, Path]) -> None:
        self.service = service
        self.folders = folders
        self.client = httpx2.Client(base_url=service.url, timeout=60)

    def post(self, path: str, **body: Any) -> Any:
        reply = self.client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def vectors(self, inputs: list[Any], kind: str) -> Any:
        reply = self.post("/v1/embeddings", input=inputs, model=kind)
        return np.array([item["embedding"] for item in reply["data"]], np.float32)


@pytest.fixture(scope="module", params=[SEPARATE])
def kinds(request: pytest.FixtureRequest) -> Iterator[Kinds]:
    topology = request.param
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        folders = {"minilm": model_dir(MINILM)}
        models = [{**MINILM.model_dump(exclude_defaults=True), "aliases": ["minilm"]}]
        for kind, build in BUILDERS.items():
            model = build(Path(scratch) / kind)
            folders[kind] = Path(model.source.removeprefix("path:"))
            entry = {"name": kind, "source": model.source, "engine": "torch"}
            if topology == SEPARATE:
                entry["deployment"] = DEPLOYMENTS.get(kind, SHARED)
            models.append(entry)
        config = service_config(topology, scratch)
        (application,) = config["applications"]
        application["args"] |= {"models": models, "precision": "fp32"}
        application["args"].pop("model", None)
        if topology == SEPARATE:
            embedder = application["deployments"][-1]
            embedder["ray_actor_options"] = {"num_cpus": 0.5}
            application["deployments"] += [
                {**embedder, "name": name} for name in ("Reranker", SHARED)
            ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", _with_prepared_models(Path(scratch)))
            with running_service(topology, config, scratch) as service:
                kinds = Kinds(service, folders)
                with kinds.client:
                    yield kinds


def _with_prepared_models(scratch: Path) -> str:
    """Returns a cache directory that has the prepared models of the user's, and nothing else."""
    cache = scratch / "xdg" / "embedserve"
    cache.mkdir(parents=True)
    if artifacts := [a for a in list_artifacts() if a.folder.parent.name == "prepared"]:
        (cache / "prepared").symlink_to(artifacts[0].folder.parent)
    return str(cache.parent)


@ON_RAY
def test_dense_models_equal_sentence_transformers(kinds: Kinds) -> None:
    for kind in ("minilm", "dense"):
        expected = SentenceTransformer(str(kinds.folders[kind]), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(kinds.vectors(TEXTS, kind), expected, atol=ATOL)


def random_image() -> tuple[Image.Image, str]:
    """Returns an image, and its data URI."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.save(file, "PNG")
    return image, f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@ON_RAY
def test_texts_and_images_share_a_space(kinds: Kinds) -> None:
    model = SentenceTransformer(str(kinds.folders["image"]), device="cpu")
    image, uri = random_image()
    np.testing.assert_allclose(
        kinds.vectors([{"image": uri}], "image"), model.encode([image]), atol=ATOL
    )
    np.testing.assert_allclose(kinds.vectors(TEXTS, "image"), model.encode(TEXTS), atol=ATOL)


@ON_RAY
def test_rerankers_equal_the_library(kinds: Kinds) -> None:
    reply = kinds.post("/rerank", query=QUERY, texts=TEXTS)
    expected = CrossEncoder(str(kinds.folders["reranker"]), device="cpu").rank(QUERY, TEXTS)
    assert [item["index"] for item in reply] == [item["corpus_id"] for item in expected]
    np.testing.assert_allclose(
        [item["score"] for item in reply], [item["score"] for item in expected], atol=ATOL
    )
    classes = kinds.post("/classify", input=TEXTS, model="classifier")["data"]
    scores = [{item["label"]: item["score"] for item in row} for row in classes]
    model = CrossEncoder(str(kinds.folders["classifier"]), device="cpu")
    np.testing.assert_allclose(
        [[row["bad"], row["good"]] for row in scores],
        [model.predict(text, apply_softmax=True) for text in TEXTS],
        atol=ATOL,
    )


@ON_RAY
def test_sparse_and_token_vectors_equal_the_library(kinds: Kinds) -> None:
    (reply,) = kinds.post("/embed_sparse", inputs=[QUERY])
    model = SparseEncoder(str(kinds.folders["sparse"]), device="cpu")
    expected = model.encode([QUERY]).to_dense().numpy()[0]
    actual = np.zeros_like(expected)
    actual[[item["index"] for item in reply]] = [item["value"] for item in reply]
    np.testing.assert_allclose(actual, expected, atol=ATOL)

    reranked = kinds.post("/v1/rerank", query=QUERY, documents=TEXTS, model="multi-vector")
    colbert = MultiVectorEncoder(str(kinds.folders["multi-vector"]), device="cpu")
    (query,), documents = colbert.encode_query([QUERY]), colbert.encode_document(TEXTS)
    scores = [float((query @ document.T).amax(1).sum()) for document in documents]
    order = sorted(range(len(TEXTS)), key=lambda i: -scores[i])
    assert [item["index"] for item in reranked["results"]] == order
    body = {"input": TEXTS, "model": "multi-vector", "return_multivector": True}
    vectors = [item["embeddings"] for item in kinds.post("/v1/embeddings", **body)["data"]]
    for vector, document in zip(vectors, documents, strict=True):
        np.testing.assert_allclose(vector, document, atol=ATOL)


@ON_RAY
def test_other_ray_jobs_name_a_model(kinds: Kinds) -> None:
    driver = (
        "import ray; from ray import serve; ray.init(log_to_driver=False);"
        'handle = serve.get_app_handle("embedserve");'
        f"print(handle.rerank.remote({QUERY!r}, {TEXTS!r}).result().shape,"
        f"len(handle.embed_sparse.remote({TEXTS!r}).result()),"
        f'handle.embed.remote({TEXTS!r}, model="dense").result().shape,'
        f"handle.embed_images.remote([{random_image()[1]!r}]).result().shape)"
    )
    output = kinds.service.run_driver(driver).strip().splitlines()[-1]
    assert output.startswith("(3,) 3 (3, 32) (1, ")


async def test_an_ill_reranker_leaves_the_others_healthy(kinds: Kinds) -> None:
    pids = kinds.service.replica_pids("Reranker")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.5)  # longer than `health_max_age_s`
        ill = kinds.client.get("/health", params={"model": "reranker"})
        health = kinds.client.get("/health")
        assert (ill.status_code, health.status_code) == (503, 200)
        assert health.json()["status"] == "degraded"
        states = {name: model["status"] for name, model in health.json()["models"].items()}
        assert [name for name, state in states.items() if state != "ok"] == ["reranker"]
        kinds.vectors([f"new {time.time_ns()}"], "minilm")
        kinds.post("/embed_sparse", inputs=[f"new {time.time_ns()}"])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    await kinds.service.wait_until(
        lambda: kinds.client.get("/health", params={"model": "reranker"}).status_code == 200
    )
    assert len(kinds.post("/rerank", query=QUERY, texts=TEXTS)) == len(TEXTS)


@ON_RAY
async def test_the_status_of_each_model_is_known(kinds: Kinds) -> None:
    with closing(CheckedService(kinds.service.url, None, 30)) as service:

        def rows() -> dict[str, tuple[str, int, int]]:
            models = served_models(service)
            return {model.name: (model.state, model.replicas, model.loaded) for model in models}

        expected = dict.fromkeys([MINILM.name, *BUILDERS], ("ok", 1, 1))
        # Ray exports the metrics of a replica that died for some time.
        await kinds.service.wait_until(lambda: rows() == expected)
        sizes = {model.name: model.memory_bytes for model in served_models(service)}
    assert all(50e6 < size < 5e9 for size in sizes.values())
    assert sizes["sparse"] == sizes["dense"]
    assert (sizes["reranker"] == sizes["dense"]) == (kinds.service.kind == COLOCATED)


async def test_a_deployment_scales_alone(kinds: Kinds) -> None:
    documents = [f"document {i} of many words" + " word" * 50 for i in range(400)]

    def others() -> list[int]:
        return [kinds.service.running_replicas(name) for name in ("Embedder", SHARED)]

    await kinds.service.wait_until(lambda: others() == [1, 1])
    async with httpx2.AsyncClient(base_url=kinds.service.url, timeout=60) as client:

        async def rerank_for_ever(number: int) -> None:
            while True:
                body = {"query": f"query {number}", "texts": documents}
                # Bulk texts would start no replica: they are computed within seconds.
                await client.post("/rerank", json=body, headers={"x-priority": "interactive"})

        tasks = [asyncio.create_task(rerank_for_ever(i)) for i in range(6)]
        await kinds.service.wait_until(lambda: kinds.service.running_replicas("Reranker") >= 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert others() == [1, 1]
