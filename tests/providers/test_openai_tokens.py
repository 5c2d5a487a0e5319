from pathlib import Path

import pytest

from serve_app.config import ModelConfig, ProviderSettings
from serve_app.models import resolve
from serve_app.providers import load_provider
from serve_app.providers.openai_tokens import OpenAITokenCounter
from tests.clients.conftest import bundled_encodings


def test_tokens_are_counted_as_openai_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", bundled_encodings())
    counter = OpenAITokenCounter()
    assert counter.count(["hello world", "<|endoftext|>", "a"]) == [2, 7, 1]
    assert counter.count([]) == []
    (count,) = counter.count(["a" * 5_000_000]) or [0]
    assert count == 131_072 // 8  # beyond the limit of every model


def test_the_tokens_of_a_prompt_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", bundled_encodings())
    config = ModelConfig(
        name="text-embedding-3-small",
        source="openai:text-embedding-3-small",
        prompts={"query": "hello world "},
        provider=ProviderSettings(api_key_env="TEST_KEY"),
    )
    monkeypatch.setenv("TEST_KEY", "key")
    provider = load_provider(config, resolve(config))
    assert provider.count_tokens(["a", "hello world"], "") == [1, 2]
    assert provider.count_tokens(["a", "hello world"], "hello world ") == [3, 4]


@pytest.mark.parametrize("folder", ["", "empty"])
def test_nothing_is_downloaded(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("The counter used the network.")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder and str(tmp_path / folder))
    assert OpenAITokenCounter().count(["text"]) is None
