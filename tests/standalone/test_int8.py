"""The default model at fp32 and at int8 in one service, with one cache for both."""

from collections.abc import Iterator

import httpx2
import numpy as np
import pytest

from embedserve_client.space import Space
from serve_app.config import MINILM, AppConfig, EmbedServerSettings
from serve_app.engines.quantization_loss import BOUNDS
from serve_app.model_prep.engine_selection import select_engines
from serve_app.standalone import StandaloneService
from tests.clients.app_server import run_server
from tests.engines.precisions import needs
from tests.valkey_server import ValkeyProcess

pytestmark = needs("int8")
FLOAT, INT8 = "minilm-fp32", "minilm-int8"
TEXT = "Vectors of two precisions have different spaces."


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    entry = {"source": MINILM.source, "engine": "openvino"}
    models = [
        {**entry, "name": FLOAT, "precision": "fp32"},
        {**entry, "name": INT8, "precision": "int8-fast"},
    ]
    with ValkeyProcess(tmp_path_factory.mktemp("valkey")) as server:
        config = AppConfig.parse({"models": models, "cache": {"url": server.url}})
        service = StandaloneService(config, select_engines(config), EmbedServerSettings(), "test")
        with (
            run_server(service.app, service.start, service.stop) as url,
            httpx2.Client(base_url=url, timeout=60) as client,
        ):
            yield client


def embed(client: httpx2.Client, model: str, **headers: str) -> httpx2.Response:
    body = {"input": TEXT, "model": model}
    return client.post("/v1/embeddings", json=body, headers=headers)


def test_float_and_int8_share_no_cache_and_no_space(client: httpx2.Client) -> None:
    replies = {model: embed(client, model) for model in (FLOAT, INT8)}
    assert ["misses=1" in reply.headers["x-cache"] for reply in replies.values()] == [True, True]
    spaces = {model: reply.headers["x-embedding-space"] for model, reply in replies.items()}
    assert not Space.parse(spaces[FLOAT]).is_comparable_to(Space.parse(spaces[INT8]))
    vectors = [np.array(r.json()["data"][0]["embedding"], np.float32) for r in replies.values()]
    assert 0.99 < float(vectors[0] @ vectors[1]) < 0.99999
    for model, vector in zip(replies, vectors, strict=True):
        cached = embed(client, model)
        assert "hits=1" in cached.headers["x-cache"]
        again = np.array(cached.json()["data"][0]["embedding"], np.float32)
        assert np.array_equal(again, vector)
    refused = embed(client, INT8, **{"x-embedding-space": spaces[FLOAT]})
    assert refused.status_code == 409


def test_info_has_the_loss(client: httpx2.Client) -> None:
    info = client.get("/info", params={"model": INT8}).json()
    assert (info["engine"], info["precision"]) == ("openvino", "int8-fast")
    loss = info["parity"]["quantization_loss"]
    bounds = BOUNDS["int8-fast"]
    assert loss.keys() == {*bounds, "texts"}
    assert all(bounds[name] <= loss[name] <= 1.0001 for name in bounds)
    other = client.get("/info", params={"model": FLOAT}).json()
    assert "quantization_loss" not in other["parity"]
