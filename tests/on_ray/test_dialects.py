"""All dialects with the real model: each route returns the same vector."""

import base64
from typing import Any

import httpx2
import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.models import model_dir
from serve_app.types import Float32
from tests.on_ray.conftest import EVERYWHERE, Service

pytestmark = EVERYWHERE

TEXT = "The same text gets the same vector on every route."
LONG = "A long text about rivers, bridges and harbours in winter. " * 40
#: The model's token limit without special tokens.
MAX_TEXT_TOKENS = 254
RAW = {"accept": "application/octet-stream"}
#: Those that each topology has after a text that isn't cached.
HISTOGRAMS = (
    *("request_duration_seconds", "queue_duration_seconds", "batch_duration_seconds"),
    *("batch_size_texts", "text_length_tokens", "lookup_duration_seconds"),
)


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(str(model_dir(MINILM)), device="cpu", local_files_only=True)


def post(service: Service, path: str, headers: dict[str, str] | None = None, **body: object) -> Any:
    reply = httpx2.post(f"{service.url}{path}", json=body, headers=headers, timeout=60)
    assert reply.status_code == 200, reply.text
    is_json = reply.headers["content-type"] == "application/json"
    return reply.json() if is_json else np.frombuffer(reply.content, "<f4")


def cosine(a: Float32, b: Float32) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_all_routes_return_the_same_bits(service: Service) -> None:
    def floats(vector: object) -> bytes:
        return np.array(vector, dtype=np.float32).tobytes()

    openai = post(service, "/v1/embeddings", input=TEXT, encoding_format="base64")["data"][0]
    cohere = post(
        service,
        "/v2/embed",
        texts=[TEXT],
        input_type="search_document",
        embedding_types=["float", "base64"],
    )["embeddings"]
    vectors = {
        base64.b64decode(openai["embedding"]),
        floats(post(service, "/v1/embeddings", input=[TEXT])["data"][0]["embedding"]),
        post(service, "/v1/embeddings", RAW, input=TEXT).tobytes(),
        floats(post(service, "/embed", inputs=TEXT)[0]),
        floats(post(service, "/", inputs=[TEXT])[0]),
        floats(post(service, "/vertex", instances=[{"inputs": TEXT}])["predictions"][0][0]),
        floats(post(service, "/embed", texts=[TEXT])["vectors"][0]),
        floats(cohere["float"][0]),
        base64.b64decode(cohere["base64"][0]),
        floats(post(service, "/embeddings", input=f" {TEXT} ")["data"][0]["embedding"]),
        floats(post(service, "/embed/text", text=TEXT)["embedding"]),
        floats(post(service, "/embed/query", query=TEXT)["embedding"]),
        floats(post(service, "/embed/batch", texts=[TEXT])["embeddings"][0]),
        post(service, "/embed/batch", RAW, texts=[TEXT]).tobytes(),
    }
    assert len(vectors) == 1


def test_the_models_token_ids_are_equivalent_to_the_text(
    service: Service, model: SentenceTransformer
) -> None:
    ids = model.tokenizer(TEXT)["input_ids"]
    from_ids = post(service, "/v1/embeddings", RAW, input=[ids])
    assert cosine(from_ids, post(service, "/v1/embeddings", RAW, input=TEXT)) > 0.99999
    tokens = post(service, "/tokenize", inputs=TEXT)[0]
    assert [token["id"] for token in tokens] == ids
    assert post(service, "/decode", ids=ids)[0] == model.tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_token_ids_of_another_model_are_rejected(service: Service) -> None:
    reply = httpx2.post(f"{service.url}/v1/embeddings", json={"input": [[9906, 1917]]}, timeout=60)
    assert reply.status_code == 400
    assert "check_embedding_ctx_length=False" in reply.json()["error"]["message"]


def test_token_vectors_equal_those_of_sentence_transformers(
    service: Service, model: SentenceTransformer
) -> None:
    actual = np.array(post(service, "/embed_all", inputs=[TEXT])[0], dtype=np.float32)
    (expected,) = model.encode([TEXT], output_value="token_embeddings")
    assert actual.shape == expected.shape
    assert min(map(cosine, actual, expected.cpu().numpy())) > 0.999


def test_a_long_text_in_chunks(service: Service, model: SentenceTransformer) -> None:
    vector = post(service, "/v1/embeddings", RAW, input=LONG, chunk=True)
    ids = model.tokenizer(LONG, add_special_tokens=False, truncation=False)["input_ids"]
    chunks = [ids[i : i + MAX_TEXT_TOKENS] for i in range(0, len(ids), MAX_TEXT_TOKENS)]
    vectors = model.encode([model.tokenizer.decode(chunk) for chunk in chunks])
    mean = np.average(vectors, axis=0, weights=list(map(len, chunks)))
    assert len(chunks) > 1
    assert cosine(vector, mean) > 0.999
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_the_end_of_a_long_text(service: Service, model: SentenceTransformer) -> None:
    text = LONG + "But this is its end."
    reply = httpx2.post(
        f"{service.url}/embed",
        json={"inputs": text, "truncation_direction": "Left"},
        timeout=60,
    )
    ids = model.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    end = model.tokenizer.decode(ids[-MAX_TEXT_TOKENS:])
    assert reply.headers["x-truncated-inputs"] == "0"
    assert cosine(np.array(reply.json()[0], np.float32), model.encode(end)) > 0.9999


def test_int8_codes_keep_the_order_of_each_dimension(service: Service) -> None:
    texts = [f"{TEXT} {i}" for i in range(20)]
    vectors = post(service, "/v1/embeddings", RAW, input=texts).reshape(20, -1)
    reply = post(service, "/v1/embeddings", input=texts, output_dtype="int8")
    codes = np.array([item["embedding"] for item in reply["data"]])
    assert codes.min() >= -128
    assert codes.max() <= 127
    steps = np.diff(np.sort(vectors, axis=0), axis=0)
    order = np.argsort(vectors, axis=0)
    ranked = np.take_along_axis(codes, order, axis=0)
    assert (np.diff(ranked, axis=0) >= 0).all()
    assert steps.shape == (19, vectors.shape[1])


def test_statistics_count_requests_and_texts(service: Service) -> None:
    httpx2.post(f"{service.url}/embed/metrics/reset", timeout=60)
    post(service, "/v1/embeddings", input=[f"{TEXT} counted", TEXT])
    post(service, "/v1/embeddings", input=[f"{TEXT} counted", TEXT])
    metrics = httpx2.get(f"{service.url}/embed/metrics", timeout=60).json()["metrics"]
    assert metrics["total_requests"] == 2
    assert metrics["total_embeddings_generated"] + metrics["cache_hits"] == 4
    assert metrics["cache_hits"] >= 2
    stats = httpx2.get(f"{service.url}/embedding/stats", timeout=60).json()
    assert stats["texts"] == 4


async def test_metrics_are_in_prometheus_format(service: Service) -> None:
    post(service, "/v1/embeddings", input=f"{TEXT} measured")
    families: dict[str, Metric] = {}

    def has_metrics() -> bool:
        text = httpx2.get(f"{service.url}/metrics", timeout=60).text
        families.update((family.name, family) for family in text_string_to_metric_families(text))
        return {f"ray_embedserve_{name}" for name in ("texts", *HISTOGRAMS)} <= set(families)

    await service.wait_until(has_metrics, timeout_s=60)
    for name in HISTOGRAMS:
        family = families[f"ray_embedserve_{name}"]
        assert family.type == "histogram"
        counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
        total = sum(s.value for s in family.samples if s.name.endswith("_sum"))
        number = sum(s.value for s in family.samples if s.name.endswith("_count"))
        assert 1 <= number <= sum(counts)
        assert total > 0
    durations = families["ray_embedserve_request_duration_seconds"].samples
    labels = {"route": "/v1/embeddings", "lane": "interactive"}
    buckets = [s for s in durations if labels.items() <= s.labels.items() and "le" in s.labels]
    assert buckets[-1].labels["le"] == "+Inf"
    assert buckets[-1].value >= 1


def test_the_docs_page(service: Service) -> None:
    page = httpx2.get(f"{service.url}/docs", timeout=60)
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/embeddings" in page.text
    assert service.url in page.text


def test_each_reply_has_one_request_id(service: Service) -> None:
    headers = {"x-request-id": "client-7"}
    reply = httpx2.post(
        f"{service.url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=60
    )
    assert reply.headers.get_list("x-request-id") == ["client-7"]
    generated = httpx2.post(f"{service.url}/v1/embeddings", json={"input": "a"}, timeout=60)
    assert len(generated.headers.get_list("x-request-id")) == 1
