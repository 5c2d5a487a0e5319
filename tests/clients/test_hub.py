"""The library `huggingface_hub`, which speaks to text-embeddings-inference."""

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import TEXTS, Served, same, vectors

#: A server is named with the route or, as that of text-embeddings-inference, without.
BOTH = pytest.mark.parametrize("path", ["", "/embed"])


@BOTH
def test_embeds(served: Served, path: str) -> None:
    client = InferenceClient(model=served.url + path)
    found = client.feature_extraction(TEXTS)
    assert found.dtype == np.float32
    assert same(found, vectors(*TEXTS))
    assert same(client.feature_extraction(TEXTS[0]), vectors(TEXTS[0]))


@BOTH
async def test_embeds_async(served: Served, path: str) -> None:
    async with AsyncInferenceClient(base_url=served.url + path) as client:
        assert same(await client.feature_extraction(TEXTS), vectors(*TEXTS))


@pytest.mark.parametrize("purpose", ["query", "document"])
def test_tells_queries_from_documents(served: Served, purpose: str) -> None:
    client = InferenceClient(model=f"{served.url}/embed")
    found = client.feature_extraction(TEXTS, prompt_name=purpose)
    assert same(found, vectors(*TEXTS, prompt=purpose))


def test_cuts(served: Served) -> None:
    client = InferenceClient(model=f"{served.url}/embed")
    found = client.feature_extraction(TEXTS, dimensions=16, normalize=True, truncate=True)
    assert same(found, truncate_dimensions(vectors(*TEXTS), 16))


@pytest.mark.parametrize("path", ["", "/similarity"])
def test_compares(served: Served, path: str) -> None:
    source, *others = TEXTS
    found = InferenceClient(model=served.url + path).sentence_similarity(source, others)
    expected = vectors(*others) @ vectors(source)[0]
    np.testing.assert_allclose(found, expected, atol=1e-7)


async def test_compares_async(served: Served) -> None:
    source, *others = TEXTS
    async with AsyncInferenceClient(model=f"{served.url}/similarity") as client:
        found = await client.sentence_similarity(source, others)
    np.testing.assert_allclose(found, vectors(*others) @ vectors(source)[0], atol=1e-7)


def test_no_text(served: Served) -> None:
    with pytest.raises(BadRequestError, match="Text 0 is empty"):
        InferenceClient(model=f"{served.url}/embed").feature_extraction("")


def test_a_text_that_is_too_long_and_may_not_be_cut(served: Served) -> None:
    with pytest.raises(HfHubHTTPError, match="longer than the 32 tokens") as told:
        InferenceClient(model=f"{served.url}/embed").feature_extraction("a " * 99, truncate=False)
    assert told.value.response.status_code == 422


def test_more_load_than_fits(overloaded: Served) -> None:
    with pytest.raises(HfHubHTTPError, match="try later") as told:
        InferenceClient(model=f"{overloaded.url}/embed").feature_extraction("a")
    assert told.value.response.status_code == 429
    assert told.value.response.headers["retry-after"] == "7"
