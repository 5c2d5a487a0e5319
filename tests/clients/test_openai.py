"""The client library `openai`."""

import time
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import (
    DIM,
    KEY,
    MODEL,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    token_count,
)


@pytest.fixture
def client(server: AppServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: AppServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        yield client


def test_the_paths_of_kserve(server: AppServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key=KEY, max_retries=0) as client:
        reply = client.embeddings.create(model=MODEL, input=TEXTS)
        assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))
        assert MODEL in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError, match="isn't served here"):
            client.embeddings.create(model="gpt", input="a")


def test_embeds(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))
    assert [item.index for item in reply.data] == list(range(len(TEXTS)))
    assert reply.model == MODEL
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == token_count(*TEXTS)


async def test_embeds_async(async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.embeddings.create(model=MODEL, input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))


def test_one_text_as_floats(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model="hashing", input=TEXTS[0], encoding_format="float")
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(TEXTS[0]))


@pytest.mark.parametrize("dimensions", [1, 16, DIM])
def test_reduced_dimensions(client: openai.OpenAI, dimensions: int) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS[:3], dimensions=dimensions)
    expected = truncate_dimensions(expected_vectors(*TEXTS[:3]), dimensions)
    assert equal_vectors([item.embedding for item in reply.data], expected)


def test_input_type_as_an_extra_field(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS, extra_body={"input_type": "query"})
    assert equal_vectors(
        [item.embedding for item in reply.data], expected_vectors(*TEXTS, prompt="query")
    )


def test_the_largest_batch_of_the_openai_api(client: openai.OpenAI) -> None:
    texts = [f"text {i}" for i in range(2048)]
    reply = client.embeddings.create(model=MODEL, input=texts)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*texts))


def test_response_headers_are_available(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=["a", "b " * 99])
    assert raw.headers["x-truncated-inputs"] == "1"


def test_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "hashing"]
    assert client.models.retrieve(MODEL).id == MODEL  # a name with a slash in it


def test_an_unknown_model_is_rejected(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here") as raised:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        client.models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize("texts", ["", [], ["a", ""]], ids=repr)
def test_an_empty_text_is_rejected(client: openai.OpenAI, texts: str | list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="is empty") as raised:
        client.embeddings.create(model=MODEL, input=texts)
    assert (raised.value.type, raised.value.param) == ("invalid_request_error", "input")


async def test_an_empty_text_is_rejected_async(async_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is empty"):
        await async_client.embeddings.create(model=MODEL, input="")


def test_too_many_dimensions_are_rejected(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="between 1 and 64") as raised:
        client.embeddings.create(model=MODEL, input="a", dimensions=DIM + 1)
    assert raised.value.param == "dimensions"


def test_overload_is_a_rate_limit_error(overloaded: AppServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError, match="try later") as raised:
        client.embeddings.create(model=MODEL, input="a")
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.code == "rate_limit_exceeded"


def test_retries_after_the_delay_of_retry_after(
    overloaded: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        overloaded.backend.error = None

    monkeypatch.setattr(time, "sleep", sleep)
    with openai.OpenAI(base_url=f"{overloaded.url}/v1", api_key=KEY) as client:
        reply = client.embeddings.create(model=MODEL, input=TEXTS[0])
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(TEXTS[0]))
    assert delays == [7]
