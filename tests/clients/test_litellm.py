"""The client library `litellm`, with several of its providers.

`huggingface/` needs the hub, and `voyage/` sends JSON without a content type.
"""

from typing import Any

import litellm
import pytest
from litellm import close_litellm_async_clients
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

from serve_app.service.dimensions import truncate_dimensions
from tests.clients.app_server import (
    KEY,
    MODEL,
    TEXTS,
    AppServer,
    equal_vectors,
    expected_vectors,
    token_count,
)

#: Provider, path of the base URL, and the prompt that the default input type selects.
PROVIDERS = [
    ("openai", "/v1", ""),
    ("hosted_vllm", "/v1", ""),
    ("jina_ai", "/v1", ""),
    ("nvidia_nim", "/v1", "query"),
    ("infinity", "", ""),
    ("cohere", "/v2/embed", "document"),
]


def embedding_arguments(
    server: AppServer, provider: str, path: str, **options: Any
) -> dict[str, Any]:
    defaults = {"model": f"{provider}/{MODEL}", "input": TEXTS, "api_base": server.url + path}
    if provider == "nvidia_nim":
        defaults["input_type"] = "query"
    return {**defaults, "api_key": KEY, "max_retries": 0, **options}


def embeddings(reply: Any) -> list[list[float]]:
    assert [item["index"] for item in reply.data] == list(range(len(reply.data)))
    return [item["embedding"] for item in reply.data]


@pytest.mark.parametrize(("provider", "path", "prompt"), PROVIDERS)
def test_embeds(server: AppServer, provider: str, path: str, prompt: str) -> None:
    reply = litellm.embedding(**embedding_arguments(server, provider, path))
    assert equal_vectors(embeddings(reply), expected_vectors(*TEXTS, prompt=prompt))


async def test_embeds_async(server: AppServer) -> None:
    for provider, path, prompt in PROVIDERS:
        reply = await litellm.aembedding(**embedding_arguments(server, provider, path))
        assert equal_vectors(embeddings(reply), expected_vectors(*TEXTS, prompt=prompt)), provider
    # Its background worker and cached clients would outlive the event loop of this test.
    await GLOBAL_LOGGING_WORKER.flush()
    await GLOBAL_LOGGING_WORKER.stop()
    await close_litellm_async_clients()


def test_counts_tokens(server: AppServer) -> None:
    reply = litellm.embedding(**embedding_arguments(server, "openai", "/v1"))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == token_count(*TEXTS)


@pytest.mark.parametrize(
    ("provider", "path", "options"),
    [("openai", "/v1", {"allowed_openai_params": ["dimensions"]}), ("infinity", "", {})],
)
def test_reduced_dimensions(
    server: AppServer, provider: str, path: str, options: dict[str, Any]
) -> None:
    reply = litellm.embedding(
        **embedding_arguments(server, provider, path, dimensions=16, **options)
    )
    assert equal_vectors(embeddings(reply), truncate_dimensions(expected_vectors(*TEXTS), 16))


def test_an_unknown_model_is_rejected(server: AppServer) -> None:
    arguments = embedding_arguments(server, "openai", "/v1", model="openai/text-embedding-3-small")
    with pytest.raises(litellm.NotFoundError, match="isn't served here"):
        litellm.embedding(**arguments)


def test_an_empty_text_is_rejected(server: AppServer) -> None:
    with pytest.raises(litellm.BadRequestError, match="Text 0 is empty"):
        litellm.embedding(**embedding_arguments(server, "openai", "/v1", input=[""]))


def test_overload_is_a_rate_limit_error(
    overloaded: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, "DEFAULT_MAX_RETRIES", 0)  # it ignores `max_retries=0`
    with pytest.raises(litellm.RateLimitError, match="try later") as raised:
        litellm.embedding(**embedding_arguments(overloaded, "openai", "/v1"))
    assert raised.value.litellm_response_headers["retry-after"] == "7"
