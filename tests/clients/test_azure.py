"""Azure's clients: `openai.AzureOpenAI`, and `AzureOpenAIEmbeddings` of `langchain-openai`."""

from collections.abc import Iterator

import openai
import pytest
from langchain_openai import AzureOpenAIEmbeddings

from tests.clients.app_server import (
    KEY,
    MODEL,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
)

API_VERSION = "2024-10-21"


@pytest.fixture
def client(server: AppServer) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=server.url, api_version=API_VERSION, api_key=KEY, max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("deployment", [MODEL, "hashing"])
def test_embeds(client: openai.AzureOpenAI, deployment: str) -> None:
    reply = client.embeddings.create(model=deployment, input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))


def test_the_deployment_of_the_client_replaces_the_model(server: AppServer) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=server.url,
        azure_deployment="hashing",
        api_version=API_VERSION,
        api_key=KEY,
        max_retries=0,
    ) as client:
        reply = client.embeddings.create(model="text-embedding-3-small", input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))


async def test_embeds_async(server: AppServer) -> None:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=server.url, api_version=API_VERSION, api_key=KEY, max_retries=0
    ) as client:
        reply = await client.embeddings.create(model=MODEL, input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))


def test_the_paths_below_openai_v1(server: AppServer) -> None:
    with openai.OpenAI(
        base_url=f"{server.url}/openai/v1/",
        default_query={"api-version": "preview"},
        api_key=KEY,
        max_retries=0,
    ) as client:
        reply = client.embeddings.create(model=MODEL, input=TEXTS)
    assert equal_vectors([item.embedding for item in reply.data], expected_vectors(*TEXTS))


def test_an_unknown_deployment_is_rejected(client: openai.AzureOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here") as raised:
        client.embeddings.create(model="gpt", input="a")
    assert raised.value.code == "DeploymentNotFound"


def test_overload_is_a_rate_limit_error(overloaded: AppServer, client: openai.AzureOpenAI) -> None:
    with pytest.raises(openai.RateLimitError, match="try later") as raised:
        client.embeddings.create(model=MODEL, input="a")
    assert raised.value.response.headers["retry-after"] == "7"
    assert raised.value.code == "429"


def test_langchain(server: AppServer) -> None:
    embeddings = AzureOpenAIEmbeddings(
        azure_endpoint=server.url,
        azure_deployment="hashing",
        api_version=API_VERSION,
        api_key=KEY,
        max_retries=0,
        check_embedding_ctx_length=False,
    )
    assert equal_vectors(embeddings.embed_query(TEXTS[0]), expected_vectors(TEXTS[0])[0])
    assert equal_vectors(embeddings.embed_documents(TEXTS), expected_vectors(*TEXTS))
