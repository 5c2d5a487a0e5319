"""The client library `ollama`."""

import json
import urllib.request
from collections.abc import Iterator

import ollama
import pytest

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


@pytest.fixture
def client(server: AppServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as client:
        yield client


@pytest.mark.parametrize("model", [MODEL, "hashing", "hashing:latest"])
def test_embeds(client: ollama.Client, model: str) -> None:
    reply = client.embed(model=model, input=TEXTS, keep_alive="5m", options={"temperature": 0.0})
    assert equal_vectors(reply.embeddings, expected_vectors(*TEXTS))
    assert reply.prompt_eval_count == token_count(*TEXTS)
    assert reply.total_duration


async def test_embeds_async(server: AppServer) -> None:
    async with ollama.AsyncClient(host=server.url) as client:
        reply = await client.embed(model=MODEL, input=TEXTS[0])
    assert equal_vectors(reply.embeddings, expected_vectors(TEXTS[0]))


def test_the_former_route_embeds_a_prompt(client: ollama.Client) -> None:
    reply = client.embeddings(model=MODEL, prompt=TEXTS[0])
    assert equal_vectors(reply.embedding, expected_vectors(TEXTS[0])[0])


def test_the_curl_examples_of_its_documentation(server: AppServer) -> None:
    """curl and urllib send a body as a form by default."""
    body = json.dumps({"model": "hashing", "input": TEXTS}).encode()
    with urllib.request.urlopen(f"{server.url}/api/embed", body) as reply:
        assert equal_vectors(json.load(reply)["embeddings"], expected_vectors(*TEXTS))


def test_reduced_dimensions(client: ollama.Client) -> None:
    reply = client.embed(model=MODEL, input=TEXTS, dimensions=16)
    assert equal_vectors(reply.embeddings, truncate_dimensions(expected_vectors(*TEXTS), 16))


def test_a_text_over_the_limit_is_rejected_without_truncation(client: ollama.Client) -> None:
    text = "word " * (MAX_TOKENS + 1)
    assert client.embed(model=MODEL, input=text).prompt_eval_count == MAX_TOKENS
    with pytest.raises(ollama.ResponseError, match="longer than") as raised:
        client.embed(model=MODEL, input=text, truncate=False)
    assert raised.value.status_code == 400


def test_lists_and_describes_the_model(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [f"{MODEL}:latest", "hashing:latest"]
    assert [model.model for model in client.ps().models] == [f"{MODEL}:latest"]
    description = client.show("hashing:latest")
    assert description.capabilities == ["embedding"]
    assert description.modelinfo
    assert description.modelinfo["embedserve.embedding_length"] == DIM


def test_an_unknown_model_is_rejected(client: ollama.Client) -> None:
    for call in (lambda: client.embed(model="gpt", input="a"), lambda: client.show("gpt")):
        with pytest.raises(ollama.ResponseError, match="isn't served here") as raised:
            call()
        assert raised.value.status_code == 404


def test_overload_is_an_error_with_its_status(overloaded: AppServer, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="try later") as raised:
        client.embed(model=MODEL, input="a")
    assert raised.value.status_code == 429
