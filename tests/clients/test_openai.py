"""The library `openai`."""

import time
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import DIM, KEY, MODEL, TEXTS, Served, same, vectors, words


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{served.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        yield client


def test_embeds(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS)
    assert same([item.embedding for item in reply.data], vectors(*TEXTS))
    assert [item.index for item in reply.data] == list(range(len(TEXTS)))
    assert reply.model == MODEL
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == words(*TEXTS)


async def test_embeds_async(async_client: openai.AsyncOpenAI) -> None:
    reply = await async_client.embeddings.create(model=MODEL, input=TEXTS)
    assert same([item.embedding for item in reply.data], vectors(*TEXTS))


def test_embeds_one_text_as_decimals(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model="hashing", input=TEXTS[0], encoding_format="float")
    assert same([item.embedding for item in reply.data], vectors(TEXTS[0]))


@pytest.mark.parametrize("dimensions", [1, 16, DIM])
def test_cuts(client: openai.OpenAI, dimensions: int) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS[:3], dimensions=dimensions)
    expected = truncate_dimensions(vectors(*TEXTS[:3]), dimensions)
    assert same([item.embedding for item in reply.data], expected)


def test_takes_a_query_by_a_field_that_the_library_does_not_know(client: openai.OpenAI) -> None:
    reply = client.embeddings.create(model=MODEL, input=TEXTS, extra_body={"input_type": "query"})
    assert same([item.embedding for item in reply.data], vectors(*TEXTS, prompt="query"))


def test_takes_the_most_texts_that_the_library_may_send(client: openai.OpenAI) -> None:
    texts = [f"text {i}" for i in range(2048)]
    reply = client.embeddings.create(model=MODEL, input=texts)
    assert same([item.embedding for item in reply.data], vectors(*texts))


def test_the_headers_are_there(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=["a", "b " * 99])
    assert raw.headers["x-truncated-inputs"] == "1"


def test_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "hashing"]
    assert client.models.retrieve(MODEL).id == MODEL  # a name with a slash in it


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here") as told:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (told.value.code, told.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        client.models.retrieve("text-embedding-3-small")


@pytest.mark.parametrize("texts", ["", [], ["a", ""]], ids=repr)
def test_no_text(client: openai.OpenAI, texts: str | list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="is empty") as told:
        client.embeddings.create(model=MODEL, input=texts)
    assert (told.value.type, told.value.param) == ("invalid_request_error", "input")


async def test_no_text_async(async_client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="is empty"):
        await async_client.embeddings.create(model=MODEL, input="")


def test_dimensions_that_the_model_does_not_have(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="between 1 and 64") as told:
        client.embeddings.create(model=MODEL, input="a", dimensions=DIM + 1)
    assert told.value.param == "dimensions"


def test_more_load_than_fits(overloaded: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError, match="try later") as told:
        client.embeddings.create(model=MODEL, input="a")
    assert told.value.response.headers["retry-after"] == "7"
    assert told.value.code == "rate_limit_exceeded"


def test_waits_for_as_long_as_it_was_told(
    overloaded: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        overloaded.lookup.error = None

    monkeypatch.setattr(time, "sleep", wait)
    with openai.OpenAI(base_url=f"{overloaded.url}/v1", api_key=KEY) as client:
        reply = client.embeddings.create(model=MODEL, input=TEXTS[0])
    assert same([item.embedding for item in reply.data], vectors(TEXTS[0]))
    assert waited == [7]
