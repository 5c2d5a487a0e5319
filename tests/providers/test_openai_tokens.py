from pathlib import Path

import pytest

from serve_app.providers.openai_tokens import OpenAITokenCounter
from tests.clients.conftest import bundled_encodings


def test_tokens_are_counted_as_openai_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", bundled_encodings())
    counter = OpenAITokenCounter()
    assert counter.count(["hello world", "<|endoftext|>", "a"]) == [2, 7, 1]
    assert counter.count([]) == []
    (count,) = counter.count(["a" * 5_000_000]) or [0]
    assert count == 131_072 // 8  # beyond the limit of every model


@pytest.mark.parametrize("folder", ["", "empty"])
def test_nothing_is_downloaded(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("The counter used the network.")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder and str(tmp_path / folder))
    assert OpenAITokenCounter().count(["text"]) is None
