"""The libraries `llama-index-embeddings-openai-like` and `-text-embeddings-inference`.

The second one reads no status: an error becomes a KeyError of its own, whatever the server says.
"""

from typing import Any

import openai
import pytest
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import MODEL, TEXTS, Served, same, vectors


def openai_like(served: Served, **settings: Any) -> OpenAILikeEmbedding:
    # It puts spaces for line breaks; both only part words.
    defaults = {"model_name": MODEL, "api_base": f"{served.url}/v1", "max_retries": 0}
    return OpenAILikeEmbedding(**{**defaults, **settings})


def tei(served: Served, **settings: Any) -> TextEmbeddingsInference:
    return TextEmbeddingsInference(model_name=MODEL, base_url=served.url, **settings)


@pytest.mark.parametrize("client", [openai_like, tei])
def test_embeds(served: Served, client: Any) -> None:
    model = client(served, embed_batch_size=2)
    assert same(model.get_query_embedding(TEXTS[0]), vectors(TEXTS[0])[0])
    assert same(model.get_text_embedding(TEXTS[1]), vectors(TEXTS[1])[0])
    served.lookup.groups.clear()
    assert same(model.get_text_embedding_batch(TEXTS), vectors(*TEXTS))
    assert len(served.lookup.groups) == 3


@pytest.mark.parametrize("client", [openai_like, tei])
async def test_embeds_async(served: Served, client: Any) -> None:
    model = client(served, embed_batch_size=2)
    assert same(await model.aget_query_embedding(TEXTS[0]), vectors(TEXTS[0])[0])
    assert same(await model.aget_text_embedding_batch(TEXTS), vectors(*TEXTS))


def test_cuts(served: Served) -> None:
    model = openai_like(served, dimensions=16)
    assert same(model.get_text_embedding_batch(TEXTS), truncate_dimensions(vectors(*TEXTS), 16))


def test_tells_queries_from_documents(served: Served) -> None:
    body = {"extra_body": {"input_type": "query"}}
    model = openai_like(served, additional_kwargs=body)
    assert same(model.get_query_embedding(TEXTS[0]), vectors(TEXTS[0], prompt="query")[0])


def test_its_errors_are_those_of_the_openai_library(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="isn't served here"):
        openai_like(served, model_name="text-embedding-3-small").get_query_embedding("a")
    with pytest.raises(openai.BadRequestError, match="is empty"):
        openai_like(served).get_query_embedding("")


def test_more_load_than_fits(overloaded: Served) -> None:
    with pytest.raises(openai.RateLimitError, match="try later"):
        openai_like(overloaded).get_query_embedding("a")
