"""Every dialect on the real model: the same vector on every route, and what an engine tells."""

import base64
from typing import Any

import httpx2
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.models import model_dir
from serve_app.types import Float32
from tests.on_ray.conftest import Service

TEXT = "The same text gets the same vector, whoever asks for it."
LONG = "A long text about rivers, bridges and harbours in winter. " * 40
#: Tokens of a text that the model takes, without those around them.
ROOM = 254
RAW = {"accept": "application/octet-stream"}


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


def test_every_route_gives_the_same_bits(service: Service) -> None:
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
    given = {
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
    assert len(given) == 1


def test_token_ids_of_the_model_s_own_are_the_text(
    service: Service, model: SentenceTransformer
) -> None:
    ids = model.tokenizer(TEXT)["input_ids"]
    from_ids = post(service, "/v1/embeddings", RAW, input=[ids])
    assert cosine(from_ids, post(service, "/v1/embeddings", RAW, input=TEXT)) > 0.99999
    spelled = post(service, "/tokenize", inputs=TEXT)[0]
    assert [token["id"] for token in spelled] == ids
    assert post(service, "/decode", ids=ids)[0] == model.tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_another_model_s_token_ids_are_refused(service: Service) -> None:
    reply = httpx2.post(f"{service.url}/v1/embeddings", json={"input": [[9906, 1917]]}, timeout=60)
    assert reply.status_code == 400
    assert "check_embedding_ctx_length=False" in reply.json()["error"]["message"]


def test_vectors_of_tokens_are_those_of_sentence_transformers(
    service: Service, model: SentenceTransformer
) -> None:
    given = np.array(post(service, "/embed_all", inputs=[TEXT])[0], dtype=np.float32)
    (expected,) = model.encode([TEXT], output_value="token_embeddings")
    assert given.shape == expected.shape
    assert min(map(cosine, given, expected.cpu().numpy())) > 0.999


def test_a_long_text_in_parts(service: Service, model: SentenceTransformer) -> None:
    given = post(service, "/v1/embeddings", RAW, input=LONG, chunk=True)
    inner = model.tokenizer(LONG, add_special_tokens=False, truncation=False)["input_ids"]
    parts = [inner[i : i + ROOM] for i in range(0, len(inner), ROOM)]
    vectors = model.encode([model.tokenizer.decode(part) for part in parts])
    mean = np.average(vectors, axis=0, weights=list(map(len, parts)))
    assert len(parts) > 1
    assert cosine(given, mean) > 0.999
    assert np.linalg.norm(given) == pytest.approx(1, abs=1e-6)


def test_the_end_of_a_long_text(service: Service, model: SentenceTransformer) -> None:
    text = LONG + "But this is its end."
    reply = httpx2.post(
        f"{service.url}/embed",
        json={"inputs": text, "truncation_direction": "Left"},
        timeout=60,
    )
    inner = model.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    end = model.tokenizer.decode(inner[-ROOM:])
    assert reply.headers["x-truncated-inputs"] == "0"
    assert cosine(np.array(reply.json()[0], np.float32), model.encode(end)) > 0.9999


def test_int8_is_near_the_vector(service: Service) -> None:
    texts = [f"{TEXT} {i}" for i in range(20)]
    whole = post(service, "/v1/embeddings", RAW, input=texts).reshape(20, -1)
    reply = post(service, "/v1/embeddings", input=texts, output_dtype="int8")
    codes = np.array([item["embedding"] for item in reply["data"]])
    assert codes.min() >= -128
    assert codes.max() <= 127
    steps = np.diff(np.sort(whole, axis=0), axis=0)
    order = np.argsort(whole, axis=0)
    ranked = np.take_along_axis(codes, order, axis=0)
    assert (np.diff(ranked, axis=0) >= 0).all(), "codes keep the order of components"
    assert steps.shape == (19, whole.shape[1])


def test_what_was_answered_is_counted(service: Service) -> None:
    httpx2.post(f"{service.url}/embed/metrics/reset", timeout=60)
    post(service, "/v1/embeddings", input=[f"{TEXT} counted", TEXT])
    post(service, "/v1/embeddings", input=[f"{TEXT} counted", TEXT])
    metrics = httpx2.get(f"{service.url}/embed/metrics", timeout=60).json()["metrics"]
    assert metrics["total_requests"] == 2
    assert metrics["total_embeddings_generated"] + metrics["cache_hits"] == 4
    assert metrics["cache_hits"] >= 2
    stats = httpx2.get(f"{service.url}/embedding/stats", timeout=60).json()
    assert stats["texts"] == 4


async def test_metrics_for_prometheus(service: Service) -> None:
    def told() -> bool:
        text = httpx2.get(f"{service.url}/metrics", timeout=60).text
        return "\nray_embedserve_texts_total{" in text

    await service.until(told, timeout_s=60)


def test_the_page(service: Service) -> None:
    page = httpx2.get(f"{service.url}/docs", timeout=60)
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/embeddings" in page.text
    assert service.url in page.text


def test_request_ids_come_back_once(service: Service) -> None:
    headers = {"x-request-id": "mine-7"}
    reply = httpx2.post(
        f"{service.url}/v1/embeddings", json={"input": "a"}, headers=headers, timeout=60
    )
    assert reply.headers.get_list("x-request-id") == ["mine-7"]
    made = httpx2.post(f"{service.url}/v1/embeddings", json={"input": "a"}, timeout=60)
    assert len(made.headers.get_list("x-request-id")) == 1
