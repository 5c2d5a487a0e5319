"""The library `litellm`, by several of the services that it knows.

Not as `huggingface/`, which asks the hub about the model before it asks the server, nor as
`voyage/`, which sends JSON without saying that it is.
"""

from typing import Any

import litellm
import pytest
from litellm import close_litellm_async_clients
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

from serve_app.service.embed import truncate_dimensions
from tests.clients.served import KEY, MODEL, TEXTS, Served, same, vectors, words

#: The service whose clients are asked for, the path of its URL, and what it is told of a text.
SERVICES = [
    ("openai", "/v1", ""),
    ("hosted_vllm", "/v1", ""),
    ("jina_ai", "/v1", ""),
    ("nvidia_nim", "/v1", "query"),
    ("infinity", "", ""),
    ("cohere", "/v2/embed", "document"),
]


def ask(served: Served, service: str, path: str, **asked: Any) -> dict[str, Any]:
    defaults = {"model": f"{service}/{MODEL}", "input": TEXTS, "api_base": served.url + path}
    if service == "nvidia_nim":
        defaults["input_type"] = "query"
    return {**defaults, "api_key": KEY, "max_retries": 0, **asked}


def numbers(reply: Any) -> list[list[float]]:
    assert [item["index"] for item in reply.data] == list(range(len(reply.data)))
    return [item["embedding"] for item in reply.data]


@pytest.mark.parametrize(("service", "path", "prompt"), SERVICES)
def test_embeds(served: Served, service: str, path: str, prompt: str) -> None:
    reply = litellm.embedding(**ask(served, service, path))
    assert same(numbers(reply), vectors(*TEXTS, prompt=prompt))


async def test_embeds_async(served: Served) -> None:
    for service, path, prompt in SERVICES:
        reply = await litellm.aembedding(**ask(served, service, path))
        assert same(numbers(reply), vectors(*TEXTS, prompt=prompt)), service
    # What it keeps for the next call would outlive the loop of this test.
    await GLOBAL_LOGGING_WORKER.flush()
    await GLOBAL_LOGGING_WORKER.stop()
    await close_litellm_async_clients()


def test_counts_tokens(served: Served) -> None:
    reply = litellm.embedding(**ask(served, "openai", "/v1"))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == words(*TEXTS)


@pytest.mark.parametrize(
    ("service", "path", "also"),
    [("openai", "/v1", {"allowed_openai_params": ["dimensions"]}), ("infinity", "", {})],
)
def test_cuts(served: Served, service: str, path: str, also: dict[str, Any]) -> None:
    reply = litellm.embedding(**ask(served, service, path, dimensions=16, **also))
    assert same(numbers(reply), truncate_dimensions(vectors(*TEXTS), 16))


def test_an_unknown_model(served: Served) -> None:
    asked = ask(served, "openai", "/v1", model="openai/text-embedding-3-small")
    with pytest.raises(litellm.NotFoundError, match="isn't served here"):
        litellm.embedding(**asked)


def test_no_text(served: Served) -> None:
    with pytest.raises(litellm.BadRequestError, match="Text 0 is empty"):
        litellm.embedding(**ask(served, "openai", "/v1", input=[""]))


def test_more_load_than_fits(overloaded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "DEFAULT_MAX_RETRIES", 0)  # it takes `max_retries=0` for none said
    with pytest.raises(litellm.RateLimitError, match="try later") as told:
        litellm.embedding(**ask(overloaded, "openai", "/v1"))
    assert told.value.litellm_response_headers["retry-after"] == "7"
