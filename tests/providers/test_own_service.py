"""A `compatible:` model whose server is this service itself."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from serve_app.config import ModelConfig
from serve_app.errors import (
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UpstreamError,
)
from serve_app.models import resolve
from serve_app.providers import load_provider
from serve_app.providers.base import Provider
from tests.clients.app_server import (
    DIM,
    PROMPTS,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    run_app_server,
    token_count,
)

LIMIT_S = 30.0


@pytest.fixture
def upstream() -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


def load(upstream: AppServer, model: str = "hashing", **settings: Any) -> Provider:
    config = ModelConfig.model_validate(
        {
            "name": "m",
            "source": f"compatible:{model}",
            "prompts": PROMPTS,
            "provider": {"base_url": f"{upstream.url}/v1", "dimensions": DIM} | settings,
        }
    )
    return load_provider(config, resolve(config))


@pytest.fixture
async def provider(upstream: AppServer) -> AsyncIterator[Provider]:
    provider = load(upstream)
    yield provider
    await provider.close()


@pytest.mark.parametrize("input_type", ["", "query", "document"])
async def test_vectors_and_tokens_are_those_of_the_service(
    input_type: str, provider: Provider
) -> None:
    reply = await provider.embed(TEXTS, PROMPTS.get(input_type, ""), LIMIT_S)
    assert equal_vectors(reply.vectors, expected_vectors(*TEXTS, prompt=input_type))
    assert reply.total_tokens == token_count(*TEXTS, prompt=input_type)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("The queue is full.", 7), Overloaded),
        (Unavailable("No replica.", 7), Unavailable),
        (InferenceError("No vector."), Unavailable),
        (InvalidRequest("The text is bad.", "texts"), InvalidRequest),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_errors_of_the_service_keep_their_meaning(
    error: EmbedServeError, expected: type[Exception], upstream: AppServer, provider: Provider
) -> None:
    upstream.backend.error = error
    with pytest.raises(expected) as caught:
        await provider.embed(TEXTS, "", LIMIT_S)
    if isinstance(caught.value, Overloaded | Unavailable) and expected is type(error):
        assert caught.value.retry_after_s == 7


async def test_an_empty_text_is_refused_with_the_words_of_the_service(provider: Provider) -> None:
    with pytest.raises(InvalidRequest, match=r"refused the texts: .*empty"):
        await provider.embed(["text", ""], "", LIMIT_S)


async def test_a_model_that_the_service_does_not_serve_is_an_upstream_error(
    upstream: AppServer,
) -> None:
    provider = load(upstream, "another")
    with pytest.raises(UpstreamError, match="no such model"):
        await provider.embed(TEXTS, "", LIMIT_S)
    await provider.close()


async def test_other_dimensions_than_the_services_are_an_error(upstream: AppServer) -> None:
    provider = load(upstream, dimensions=DIM * 2)
    with pytest.raises(UpstreamError, match=f"length {DIM}, not {DIM * 2}"):
        await provider.embed(TEXTS, "", LIMIT_S)
    await provider.close()
