"""The client libraries `llama-index-embeddings-openai-like` and `-text-embeddings-inference`.

The second ignores the status of a reply and raises KeyError for any error: not tested.
"""

from typing import Any

import openai
import pytest
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import MODEL, TEXTS, AppServer, equal_vectors, expected_vectors


def openai_like(server: AppServer, **settings: Any) -> OpenAILikeEmbedding:
    # The library replaces line breaks by spaces, which doesn't change the words of a text.
    defaults = {"model_name": MODEL, "api_base": f"{server.url}/v1", "max_retries": 0}
    return OpenAILikeEmbedding(**{**defaults, **settings})


def tei(server: AppServer, **settings: Any) -> TextEmbeddingsInference:
    return TextEmbeddingsInference(model_name=MODEL, base_url=server.url, **settings)


@pytest.mark.parametrize("client", [openai_like, tei])
def test_embeds(server: AppServer, client: Any) -> None:
    model = client(server, embed_batch_size=2)
    assert equal_vectors(model.get_query_embedding(TEXTS[0]), expected_vectors(TEXTS[0])[0])
    assert equal_vectors(model.get_text_embedding(TEXTS[1]), expected_vectors(TEXTS[1])[0])
    server.backend.groups.clear()
    assert equal_vectors(model.get_text_embedding_batch(TEXTS), expected_vectors(*TEXTS))
    assert len(server.backend.groups) == 3


@pytest.mark.parametrize("client", [openai_like, tei])
async def test_embeds_async(server: AppServer, client: Any) -> None:
    model = client(server, embed_batch_size=2)
    assert equal_vectors(await model.aget_query_embedding(TEXTS[0]), expected_vectors(TEXTS[0])[0])
    assert equal_vectors(await model.aget_text_embedding_batch(TEXTS), expected_vectors(*TEXTS))


def test_reduced_dimensions(server: AppServer) -> None:
    model = openai_like(server, dimensions=16)
    assert equal_vectors(
        model.get_text_embedding_batch(TEXTS), truncate_dimensions(expected_vectors(*TEXTS), 16)
    )


def test_queries_and_documents_have_their_prompts(server: AppServer) -> None:
    body = {"extra_body": {"input_type": "query"}}
    model = openai_like(server, additional_kwargs=body)
    assert equal_vectors(
        model.get_query_embedding(TEXTS[0]), expected_vectors(TEXTS[0], prompt="query")[0]
    )


def test_errors_are_those_of_the_openai_library(server: AppServer) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        openai_like(server, model_name="text-embedding-3-small").get_query_embedding("a")
    with pytest.raises(openai.BadRequestError, match="is empty"):
        openai_like(server).get_query_embedding("")


def test_overload_is_a_rate_limit_error(overloaded: AppServer) -> None:
    with pytest.raises(openai.RateLimitError, match="try later"):
        openai_like(overloaded).get_query_embedding("a")
