"""The library `langchain-openai`."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from serve_app.config import IngressSettings
from serve_app.service.embed import truncate_dimensions
from tests.clients.served import KEY, MODEL, TEXTS, Served, same, vectors


def embeddings(served: Served, **settings: Any) -> OpenAIEmbeddings:
    defaults = {"model": MODEL, "base_url": f"{served.url}/v1", "api_key": KEY}
    return OpenAIEmbeddings(**{**defaults, "max_retries": 0, **settings})


#: Every id of the first one is also an id of small vocabularies, and those of the second aren't.
@pytest.mark.parametrize("text", ["Hello, world", "Zürich 北京 quokkas"])
def test_ids_of_another_vocabulary_are_refused_and_the_way_out_is_told(
    served: Served, text: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as told:
        embeddings(served).embed_query(text)
    assert told.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings(served).embed_documents([text, text])
    assert served.lookup.groups == []


async def test_ids_of_another_vocabulary_are_refused_async(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        await embeddings(served).aembed_query("Hello, world")


@pytest.fixture
def reads_cl100k(served: Served) -> Iterator[None]:
    served.service.apply(IngressSettings(token_ids="cl100k_base"))
    yield
    served.service.apply(IngressSettings())


@pytest.mark.usefixtures("reads_cl100k")
def test_default_settings_work_where_the_service_is_told_whose_ids_they_are(served: Served) -> None:
    client = embeddings(served)
    assert same(client.embed_query(TEXTS[1]), vectors(TEXTS[1])[0])
    assert same(client.embed_documents(TEXTS), vectors(*TEXTS))


@pytest.mark.usefixtures("reads_cl100k")
def test_ids_that_the_encoding_does_not_have(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
    for ids in ([100_300], [2**63], [-1]):
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.embeddings.create(model=MODEL, input=ids)


def test_embeds(served: Served) -> None:
    client = embeddings(served, check_embedding_ctx_length=False)
    assert same(client.embed_query(TEXTS[0]), vectors(TEXTS[0])[0])
    assert same(client.embed_documents(TEXTS), vectors(*TEXTS))


async def test_embeds_async(served: Served) -> None:
    client = embeddings(served, check_embedding_ctx_length=False)
    assert same(await client.aembed_query(TEXTS[0]), vectors(TEXTS[0])[0])
    assert same(await client.aembed_documents(TEXTS), vectors(*TEXTS))


def test_embeds_in_batches(served: Served) -> None:
    client = embeddings(served, check_embedding_ctx_length=False, chunk_size=2)
    assert same(client.embed_documents(TEXTS), vectors(*TEXTS))
    assert len(served.lookup.groups) == 3


def test_cuts(served: Served) -> None:
    client = embeddings(served, check_embedding_ctx_length=False, dimensions=16)
    assert same(client.embed_documents(TEXTS), truncate_dimensions(vectors(*TEXTS), 16))


def test_tells_queries_from_documents(served: Served) -> None:
    body = {"extra_body": {"input_type": "query"}}
    client = embeddings(served, check_embedding_ctx_length=False, model_kwargs=body)
    assert same(client.embed_query(TEXTS[0]), vectors(TEXTS[0], prompt="query")[0])


def test_its_errors_are_those_of_the_openai_library(served: Served) -> None:
    client = embeddings(served, check_embedding_ctx_length=False)
    with pytest.raises(openai.BadRequestError, match="is empty"):
        client.embed_query("")
    unknown = embeddings(served, check_embedding_ctx_length=False, model="text-embedding-3-small")
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        unknown.embed_query("a")


def test_more_load_than_fits(overloaded: Served) -> None:
    with pytest.raises(openai.RateLimitError, match="try later"):
        embeddings(overloaded, check_embedding_ctx_length=False).embed_query("a")
