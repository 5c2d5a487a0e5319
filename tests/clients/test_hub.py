"""The client library `huggingface_hub`, a client of text-embeddings-inference."""

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import TEXTS, AppServer, equal_vectors, expected_vectors

#: The URL of the model may end in the route or not, as for text-embeddings-inference.
WITH_AND_WITHOUT_ROUTE = pytest.mark.parametrize("path", ["", "/embed"])


@WITH_AND_WITHOUT_ROUTE
def test_embeds(server: AppServer, path: str) -> None:
    client = InferenceClient(model=server.url + path)
    result = client.feature_extraction(TEXTS)
    assert result.dtype == np.float32
    assert equal_vectors(result, expected_vectors(*TEXTS))
    assert equal_vectors(client.feature_extraction(TEXTS[0]), expected_vectors(TEXTS[0]))


@WITH_AND_WITHOUT_ROUTE
async def test_embeds_async(server: AppServer, path: str) -> None:
    async with AsyncInferenceClient(base_url=server.url + path) as client:
        assert equal_vectors(await client.feature_extraction(TEXTS), expected_vectors(*TEXTS))


@pytest.mark.parametrize("input_type", ["query", "document"])
def test_queries_and_documents_have_their_prompts(server: AppServer, input_type: str) -> None:
    client = InferenceClient(model=f"{server.url}/embed")
    result = client.feature_extraction(TEXTS, prompt_name=input_type)
    assert equal_vectors(result, expected_vectors(*TEXTS, prompt=input_type))


def test_reduced_dimensions(server: AppServer) -> None:
    client = InferenceClient(model=f"{server.url}/embed")
    result = client.feature_extraction(TEXTS, dimensions=16, normalize=True, truncate=True)
    assert equal_vectors(result, truncate_dimensions(expected_vectors(*TEXTS), 16))


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_similarity(server: AppServer, path: str) -> None:
    source, *others = TEXTS
    result = InferenceClient(model=server.url + path).sentence_similarity(source, others)
    expected = expected_vectors(*others) @ expected_vectors(source)[0]
    np.testing.assert_allclose(result, expected, atol=1e-7)


async def test_similarity_async(server: AppServer) -> None:
    source, *others = TEXTS
    async with AsyncInferenceClient(model=f"{server.url}/similarity") as client:
        result = await client.sentence_similarity(source, others)
    np.testing.assert_allclose(
        result, expected_vectors(*others) @ expected_vectors(source)[0], atol=1e-7
    )


def test_an_empty_text_is_rejected(server: AppServer) -> None:
    with pytest.raises(BadRequestError, match="Text 0 is empty"):
        InferenceClient(model=f"{server.url}/embed").feature_extraction("")


def test_a_long_text_without_truncation_is_rejected(server: AppServer) -> None:
    with pytest.raises(HfHubHTTPError, match="longer than the 32 tokens") as raised:
        InferenceClient(model=f"{server.url}/embed").feature_extraction("a " * 99, truncate=False)
    assert raised.value.response.status_code == 422


def test_overload_is_a_rate_limit_error(overloaded: AppServer) -> None:
    with pytest.raises(HfHubHTTPError, match="try later") as raised:
        InferenceClient(model=f"{overloaded.url}/embed").feature_extraction("a")
    assert raised.value.response.status_code == 429
    assert raised.value.response.headers["retry-after"] == "7"
