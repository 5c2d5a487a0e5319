"""The client library `langchain-openai`."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from serve_app.config import IngressSettings
from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import KEY, MODEL, TEXTS, AppServer, equal_vectors, expected_vectors


def embeddings(server: AppServer, **settings: Any) -> OpenAIEmbeddings:
    defaults = {"model": MODEL, "base_url": f"{server.url}/v1", "api_key": KEY}
    return OpenAIEmbeddings(**{**defaults, "max_retries": 0, **settings})


#: The cl100k ids of the first text are also in small vocabularies; those of the second are not.
@pytest.mark.parametrize("text", ["Hello, world", "Zürich 北京 quokkas"])
def test_foreign_token_ids_are_rejected_with_the_setting_that_helps(
    server: AppServer, text: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as raised:
        embeddings(server).embed_query(text)
    assert raised.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        embeddings(server).embed_documents([text, text])
    assert server.backend.groups == []


async def test_foreign_token_ids_are_rejected_async(server: AppServer) -> None:
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        await embeddings(server).aembed_query("Hello, world")


@pytest.fixture
def accepts_cl100k(server: AppServer) -> Iterator[None]:
    server.service.apply(IngressSettings(token_ids="cl100k_base"))
    yield
    server.service.apply(IngressSettings())


@pytest.mark.usefixtures("accepts_cl100k")
def test_default_settings_work_with_the_setting_token_ids(
    server: AppServer,
) -> None:
    client = embeddings(server)
    assert equal_vectors(client.embed_query(TEXTS[1]), expected_vectors(TEXTS[1])[0])
    assert equal_vectors(client.embed_documents(TEXTS), expected_vectors(*TEXTS))


@pytest.mark.usefixtures("accepts_cl100k")
def test_ids_outside_the_encoding_are_rejected(server: AppServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    for ids in ([100_300], [2**63], [-1]):
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.embeddings.create(model=MODEL, input=ids)


def test_embeds(server: AppServer) -> None:
    client = embeddings(server, check_embedding_ctx_length=False)
    assert equal_vectors(client.embed_query(TEXTS[0]), expected_vectors(TEXTS[0])[0])
    assert equal_vectors(client.embed_documents(TEXTS), expected_vectors(*TEXTS))


async def test_embeds_async(server: AppServer) -> None:
    client = embeddings(server, check_embedding_ctx_length=False)
    assert equal_vectors(await client.aembed_query(TEXTS[0]), expected_vectors(TEXTS[0])[0])
    assert equal_vectors(await client.aembed_documents(TEXTS), expected_vectors(*TEXTS))


def test_embeds_in_batches(server: AppServer) -> None:
    client = embeddings(server, check_embedding_ctx_length=False, chunk_size=2)
    assert equal_vectors(client.embed_documents(TEXTS), expected_vectors(*TEXTS))
    assert len(server.backend.groups) == 3


def test_reduced_dimensions(server: AppServer) -> None:
    client = embeddings(server, check_embedding_ctx_length=False, dimensions=16)
    assert equal_vectors(
        client.embed_documents(TEXTS), truncate_dimensions(expected_vectors(*TEXTS), 16)
    )


def test_queries_and_documents_have_their_prompts(server: AppServer) -> None:
    body = {"extra_body": {"input_type": "query"}}
    client = embeddings(server, check_embedding_ctx_length=False, model_kwargs=body)
    assert equal_vectors(
        client.embed_query(TEXTS[0]), expected_vectors(TEXTS[0], prompt="query")[0]
    )


def test_errors_are_those_of_the_openai_library(server: AppServer) -> None:
    client = embeddings(server, check_embedding_ctx_length=False)
    with pytest.raises(openai.BadRequestError, match="is empty"):
        client.embed_query("")
    unknown = embeddings(server, check_embedding_ctx_length=False, model="text-embedding-3-small")
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        unknown.embed_query("a")


def test_overload_is_a_rate_limit_error(overloaded: AppServer) -> None:
    with pytest.raises(openai.RateLimitError, match="try later"):
        embeddings(overloaded, check_embedding_ctx_length=False).embed_query("a")
