"""The running service as clients see it, over HTTP and through a Ray handle."""

import base64
import concurrent.futures
import gzip
import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import httpx2
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM, AppConfig, IngressSettings
from serve_app.engines.parity import MIN_COSINE
from serve_app.model_prep.engine_selection import select_engines
from serve_app.models import model_dir
from tests.engines.texts import mixed_texts
from tests.on_ray.conftest import EVERYWHERE, ON_RAY, Service

TEXTS = mixed_texts(300)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(model_dir(MINILM)), device="cpu", local_files_only=True)


def precision() -> str:
    """Returns the precision of the default model on this machine."""
    (selection,) = select_engines(AppConfig())
    return selection.precision


@EVERYWHERE
def test_vectors_of_300_texts_equal_those_of_sentence_transformers(
    service: Service, reference: SentenceTransformer
) -> None:
    expected = reference.encode(TEXTS)
    counts = [
        len(ids) for ids in reference.tokenizer(TEXTS, truncation=True, max_length=256).input_ids
    ]
    as_float, as_base64 = (
        httpx2.post(
            f"{service.url}/v1/embeddings",
            json={"input": TEXTS, "encoding_format": encoding},
            timeout=120,
        )
        for encoding in ("float", "base64")
    )
    actual = np.array([d["embedding"] for d in as_float.json()["data"]], dtype=np.float32)
    cosine = (actual * expected).sum(axis=1) / np.linalg.norm(actual, axis=1)
    assert cosine.min() >= MIN_COSINE[precision()]
    assert as_float.json()["usage"]["prompt_tokens"] == sum(counts)
    raw = b"".join(base64.b64decode(d["embedding"]) for d in as_base64.json()["data"])
    assert raw == actual.tobytes()
    assert as_float.headers["x-truncated-inputs"]


@EVERYWHERE
def test_a_vector_depends_on_its_batch_only_within_the_tolerance(
    service: Service, reference: SentenceTransformer
) -> None:
    tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision()]
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS[:60])]  # not cached
    batched = service.client().embeddings.create(model=MINILM.name, input=texts)
    for text, data in zip(texts, batched.data, strict=True):
        expected = reference.encode([text])[0]
        np.testing.assert_allclose(data.embedding, expected, atol=tolerance)


@EVERYWHERE
def test_the_hugging_face_client_gets_the_same_vector(service: Service) -> None:
    text = "Feature extraction through another dialect."
    vectors = InferenceClient(model=f"{service.url}/embed").feature_extraction(text)
    reply = service.client().embeddings.create(model=MINILM.name, input=text)
    assert vectors[0].tolist() == np.array(reply.data[0].embedding, np.float32).tolist()


@EVERYWHERE
def test_a_cached_vector_has_the_same_bits(service: Service) -> None:
    client = service.client()
    texts = ["once", "twice", "once"]
    first = client.embeddings.create(model=MINILM.name, input=texts)
    second = client.embeddings.create(model=MINILM.name, input=texts)
    assert [d.embedding for d in first.data] == [d.embedding for d in second.data]
    assert first.data[0].embedding == first.data[2].embedding
    assert first.usage.prompt_tokens == second.usage.prompt_tokens


@EVERYWHERE
def test_the_openai_client_lists_models_and_reduces_dimensions(service: Service) -> None:
    client = service.client()
    assert [model.id for model in client.models.list()] == [MINILM.name, *MINILM.aliases]
    short = client.embeddings.create(model=MINILM.aliases[0], input="a", dimensions=32)
    assert len(short.data[0].embedding) == 32
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1)


@EVERYWHERE
def test_the_openai_client_raises_its_own_errors(service: Service) -> None:
    client = service.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="Text 1 is empty") as empty:
        client.embeddings.create(model=MINILM.name, input=["a", ""])
    assert (empty.value.type, empty.value.param) == ("invalid_request_error", "input")


@EVERYWHERE
def test_info_describes_the_selected_engine(service: Service) -> None:
    info = httpx2.get(f"{service.url}/info", timeout=30).json()
    (selection,) = select_engines(AppConfig())
    expected = (selection.engine, "cpu", selection.precision)
    assert info["space"] == selection.spec.space_id
    assert (info["engine"], info["device"], info["precision"]) == expected
    assert info["versions"][selection.engine]
    assert info["parity"]["cosine_min"] >= MIN_COSINE[selection.precision]
    assert info["refused"] == list(selection.rejected)
    health = httpx2.get(f"{service.url}/health", timeout=30)
    assert (health.status_code, health.json()["status"]) == (200, "ok")


@EVERYWHERE
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 405), ("POST", "/v1/nothing", 404), ("POST", "/v1/embeddings", 415)],
)
def test_errors_pass_the_proxy_unchanged(
    service: Service, method: str, path: str, status: int
) -> None:
    reply = httpx2.request(method, service.url + path, content=b"x", timeout=30)
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


@EVERYWHERE
def test_a_body_over_the_limit_is_rejected_by_its_content_length(service: Service) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000000\r\n\r\n{"
        )
        status_line = connection.recv(64).split(b"\r\n")[0]
    assert status_line.startswith(b"HTTP/1.1 413 ")


@EVERYWHERE
@pytest.mark.parametrize("size", [1.1, 4])
def test_a_client_that_sends_a_body_over_the_limit_first_gets_the_status(
    service: Service, size: float
) -> None:
    host, port = urlsplit(service.url).netloc.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    body = bytes(int(size * IngressSettings().max_body_bytes))
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    assert connection.getresponse().status == 413
    connection.close()


@EVERYWHERE
def test_packed_requests_and_replies_pass_the_proxy(service: Service) -> None:
    body = gzip.compress(json.dumps({"input": TEXTS[:8]}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    packed, plain = (
        httpx2.post(
            f"{service.url}/v1/embeddings",
            content=body,
            headers=headers | {"accept-encoding": coding},
            timeout=60,
        )
        for coding in ("gzip", "identity")
    )
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json()["data"] == plain.json()["data"]


@pytest.mark.exclusive
@EVERYWHERE
def test_overload_is_rejected_with_429_and_other_requests_succeed(service: Service) -> None:
    service.wait_for_one_replica()  # each has a queue

    def embed(number: int) -> tuple[int, float, httpx2.Headers]:
        texts = [f"request {number} text {i} " + "with some more words " * 5 for i in range(400)]
        start_s = time.monotonic()
        reply = httpx2.post(f"{service.url}/v1/embeddings", json={"input": texts}, timeout=120)
        assert reply.status_code != 200 or len(reply.json()["data"]) == 400
        return reply.status_code, time.monotonic() - start_s, reply.headers

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(embed, range(8)))
    statuses = [status for status, _, _ in replies]
    assert set(statuses) == {200, 429}
    slowest_served = max(seconds for status, seconds, _ in replies if status == 200)
    for status, seconds, headers in replies:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert seconds < slowest_served


@ON_RAY
def test_another_ray_job_embeds_through_the_handle(service: Service) -> None:
    output = service.run_driver(
        """
import json, ray
from ray import serve
from serve_app.errors import InvalidRequest, SpaceConflict
ray.init(log_to_driver=False)
handle = serve.get_app_handle("embedserve")
space = handle.space.remote().result()
assert len(handle.embed.remote(["pinned"], space=space).result()) == 1
try:
    handle.embed.remote(["pinned"], space="f00d-fp32").result()
    raise AssertionError("A handle returned vectors of another space.")
except SpaceConflict:
    pass
vectors = handle.embed.remote(["a job's text", "another"], input_type="query").result()
try:
    handle.embed.remote(["fine", ""]).result()
except InvalidRequest as error:
    message = error.message
print(json.dumps([str(vectors.dtype), vectors.shape, vectors.tolist(), message]))
"""
    )
    dtype, shape, vectors, message = json.loads(output.splitlines()[-1])
    assert (dtype, shape) == ("float32", [2, 384])
    assert message.startswith("Text 1 is empty")
    over_http = service.client().embeddings.create(model=MINILM.name, input=["a job's text"])
    assert vectors[0] == over_http.data[0].embedding


@pytest.mark.exclusive
@EVERYWHERE
@pytest.mark.parametrize(("clients_n", "texts_n"), [(20, 50), (200, 8)], ids=["bulk", "queries"])
def test_texts_of_disconnected_clients_leave_the_queue(
    service: Service, clients_n: int, texts_n: int
) -> None:
    def texts(name: str, n: int) -> list[str]:
        return [f"{name} {i} " + "a few words " * 6 for i in range(n)]

    address = urlsplit(service.url)
    clients = []
    for number in range(clients_n):
        name = f"disconnected {number} of {clients_n}"
        body = json.dumps({"input": texts(name, texts_n)}).encode()
        client = socket.create_connection((address.hostname, address.port), timeout=10)
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        clients.append(client)
    time.sleep(0.5)  # all texts are queued and nearly fill the queue
    for client in clients:
        client.close()
    time.sleep(0.5)
    reply = httpx2.post(
        f"{service.url}/v1/embeddings",
        json={"input": texts(f"remaining with {clients_n}", 500)},
        timeout=120,
    )
    assert reply.status_code == 200, reply.text  # 429 if the texts were still queued


def test_tokens_and_token_vectors_come_from_the_embedder(
    service: Service,
) -> None:
    output = service.run_driver(
        """
import json, ray
from ray import serve
from serve_app.config import MINILM
from serve_app.types import TextGroup
ray.init(log_to_driver=False)
embedder = serve.get_deployment_handle("Embedder", app_name="embedserve")
service = serve.get_app_handle("embedserve")
engine = f"{service.space.remote().result()}/{MINILM.name}"
(tokenization,) = embedder.tokenize.remote(engine, ("hello world",), True).result()
texts = embedder.decode.remote(engine, (tuple(tokenization.ids),), True).result()
(vectors,) = service.embed_tokens.remote(["hello world"]).result()
groups = [TextGroup((ids,)) for ids in ((15339, 1917), tuple(tokenization.ids), "hello world")]
invalid, *same = embedder.run.remote(engine, tuple(groups)).result()
unknown = embedder.decode.remote(engine, ((-1,),), True).result()
errors = [invalid.code, invalid.param, unknown.code, unknown.param]
equal = same[0].values == same[1].values
print(json.dumps([tokenization.tokens, texts, vectors.shape, errors, equal]))
"""
    )
    tokens, texts, shape, errors, equal = json.loads(output.splitlines()[-1])
    assert (tokens, texts) == (["[CLS]", "hello", "world", "[SEP]"], ["hello world"])
    assert shape == [4, 384]
    assert errors == ["invalid_value", "texts", "invalid_value", "ids"]
    assert equal
