"""What a client sees of the whole service, through its real doors."""

import base64
import concurrent.futures
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

from serve_app.config import MINILM, AppConfig
from serve_app.engines.parity import GATES
from serve_app.model_prep.engine_selection import select_engine
from serve_app.models import model_dir
from tests.engines.texts import mixed_texts
from tests.on_ray.conftest import Service

TEXTS = mixed_texts(300)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(model_dir(MINILM)), device="cpu", local_files_only=True)


def test_300_texts_are_embedded_as_sentence_transformers_does(
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
    got = np.array([d["embedding"] for d in as_float.json()["data"]], dtype=np.float32)
    cosine = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() >= GATES[select_engine(AppConfig()).config.precision]
    assert as_float.json()["usage"]["prompt_tokens"] == sum(counts)
    raw = b"".join(base64.b64decode(d["embedding"]) for d in as_base64.json()["data"])
    assert raw == got.tobytes()
    assert as_float.headers["x-truncated-inputs"]


def test_a_vector_does_not_depend_on_its_neighbours(
    service: Service, reference: SentenceTransformer
) -> None:
    tolerance = {"fp32": 1e-5, "bf16": 2e-3}[select_engine(AppConfig()).config.precision]
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS[:60])]  # new ones: nothing is cached
    together = service.client().embeddings.create(model=MINILM.name, input=texts)
    for text, data in zip(texts, together.data, strict=True):
        alone = reference.encode([text])[0]
        np.testing.assert_allclose(data.embedding, alone, atol=tolerance)


def test_the_hubs_client_gets_the_same_vector(service: Service) -> None:
    text = "Feature extraction through another dialect."
    given = InferenceClient(model=f"{service.url}/embed").feature_extraction(text)
    reply = service.client().embeddings.create(model=MINILM.name, input=text)
    assert given[0].tolist() == np.array(reply.data[0].embedding, np.float32).tolist()


def test_the_same_text_gets_the_same_bits_again(service: Service) -> None:
    client = service.client()
    texts = ["once", "twice", "once"]
    first = client.embeddings.create(model=MINILM.name, input=texts)
    again = client.embeddings.create(model=MINILM.name, input=texts)
    assert [d.embedding for d in first.data] == [d.embedding for d in again.data]
    assert first.data[0].embedding == first.data[2].embedding
    assert first.usage.prompt_tokens == again.usage.prompt_tokens


def test_the_openai_client_lists_and_cuts(service: Service) -> None:
    client = service.client()
    assert [model.id for model in client.models.list()] == [MINILM.name, *MINILM.aliases]
    short = client.embeddings.create(model=MINILM.aliases[0], input="a", dimensions=32)
    assert len(short.data[0].embedding) == 32
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1)


def test_the_openai_client_gets_its_own_errors(service: Service) -> None:
    client = service.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="Text 1 is empty") as empty:
        client.embeddings.create(model=MINILM.name, input=["a", ""])
    assert (empty.value.type, empty.value.param) == ("invalid_request_error", "input")


def test_info_and_health_tell_the_truth(service: Service) -> None:
    info = httpx2.get(f"{service.url}/info").json()
    choice = select_engine(AppConfig())
    chosen = (choice.config.engine, "cpu", choice.config.precision)
    assert info["space"] == choice.spec.space_id
    assert (info["engine"], info["device"], info["precision"]) == chosen
    assert info["versions"][choice.config.engine]
    assert info["parity"]["cosine_min"] >= GATES[choice.config.precision]
    assert info["refused"] == list(choice.refused)
    health = httpx2.get(f"{service.url}/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/embeddings", 405), ("POST", "/v1/nothing", 404), ("POST", "/v1/embeddings", 415)],
)
def test_errors_come_through_the_proxy_as_they_are(
    service: Service, method: str, path: str, status: int
) -> None:
    reply = httpx2.request(method, service.url + path, content=b"x")
    assert reply.status_code == status
    assert reply.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused_before_it_is_sent(service: Service) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000000\r\n\r\n{"
        )
        status_line = connection.recv(64).split(b"\r\n")[0]
    assert status_line.startswith(b"HTTP/1.1 413 ")


def test_more_load_than_fits_is_429_at_once_and_the_rest_is_served(service: Service) -> None:
    def ask(number: int) -> tuple[int, float, httpx2.Headers]:
        texts = [f"request {number} text {i} " + "with some more words " * 5 for i in range(400)]
        begin = time.monotonic()
        reply = httpx2.post(f"{service.url}/v1/embeddings", json={"input": texts}, timeout=120)
        assert reply.status_code != 200 or len(reply.json()["data"]) == 400
        return reply.status_code, time.monotonic() - begin, reply.headers

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 429}
    slowest_served = max(took for status, took, _ in answers if status == 200)
    for status, took, headers in answers:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert took < slowest_served


def test_another_ray_job_embeds_through_the_handle(service: Service) -> None:
    printed = service.drive(
        """
import json, ray
from ray import serve
from serve_app.errors import InvalidRequest
ray.init(log_to_driver=False)
handle = serve.get_app_handle("embedserve")
vectors = handle.embed.remote(["a job's text", "another"], input_type="query").result()
try:
    handle.embed.remote(["fine", ""]).result()
except InvalidRequest as error:
    refused = error.message
print(json.dumps([str(vectors.dtype), vectors.shape, vectors.tolist(), refused]))
"""
    )
    dtype, shape, vectors, refused = json.loads(printed.splitlines()[-1])
    assert (dtype, shape) == ("float32", [2, 384])
    assert refused.startswith("Text 1 is empty")
    over_http = service.client().embeddings.create(model=MINILM.name, input=["a job's text"])
    assert vectors[0] == over_http.data[0].embedding


@pytest.mark.parametrize(("clients_n", "texts_n"), [(20, 50), (200, 8)], ids=["bulk", "queries"])
def test_clients_that_leave_take_their_work_with_them(
    service: Service, clients_n: int, texts_n: int
) -> None:
    def texts(name: str, n: int) -> list[str]:
        return [f"{name} {i} " + "a few words " * 6 for i in range(n)]

    address = urlsplit(service.url)
    clients = []
    for number in range(clients_n):
        name = f"nobody waits for {number} of {clients_n}"
        body = json.dumps({"input": texts(name, texts_n)}).encode()
        client = socket.create_connection((address.hostname, address.port), timeout=10)
        client.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        clients.append(client)
    time.sleep(0.5)  # they are all in the queue, and nearly fill it
    for client in clients:
        client.close()
    time.sleep(0.5)
    reply = httpx2.post(
        f"{service.url}/v1/embeddings",
        json={"input": texts(f"somebody waits with {clients_n}", 500)},
        timeout=120,
    )
    assert reply.status_code == 200, reply.text  # a 429 if what they left behind still waited


def test_what_the_tokenizer_and_the_transformer_know_comes_from_the_embedder(
    service: Service,
) -> None:
    printed = service.drive(
        """
import json, ray
from ray import serve
from serve_app.types import TextGroup
ray.init(log_to_driver=False)
embedder = serve.get_deployment_handle("Embedder", app_name="embedserve")
(spelled,) = embedder.spell.remote(("hello world",), True).result()
texts = embedder.decode.remote((tuple(spelled.ids),), True).result()
(vectors,) = embedder.embed_tokens.remote(TextGroup(("hello world",))).result()
groups = [TextGroup((ids,)) for ids in ((15339, 1917), tuple(spelled.ids), "hello world")]
refused, *same = embedder.embed.remote(tuple(groups)).result()
unknown = embedder.decode.remote(((-1,),), True).result()
errors = [refused.code, refused.param, unknown.code, unknown.param]
equal = bool((same[0].values == same[1].values).all())
print(json.dumps([spelled.pieces, texts, vectors.values.shape, errors, equal]))
"""
    )
    pieces, texts, shape, errors, equal = json.loads(printed.splitlines()[-1])
    assert (pieces, texts) == (["[CLS]", "hello", "world", "[SEP]"], ["hello world"])
    assert shape == [4, 384]
    assert errors == ["invalid_value", "texts", "invalid_value", "ids"]
    assert equal
