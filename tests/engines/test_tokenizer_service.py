import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread

import pytest

from serve_app.engines.tokenizer_service import TokenizerService
from serve_app.errors import InferenceError, InvalidRequest
from serve_app.types import Tokenization
from tests.fakes import FakeTokenizer


class ObservedTokenizer(FakeTokenizer):
    """Records the threads that tokenize, and fails on request."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.error: Exception | None = None

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Tokenization]:
        self.threads.append(current_thread().name)
        if self.error is not None:
            raise self.error
        return super().tokenize(texts, add_special_tokens=add_special_tokens)


@pytest.fixture
def tokenizer() -> ObservedTokenizer:
    return ObservedTokenizer()


@pytest.fixture
def service(tokenizer: ObservedTokenizer) -> Iterator[TokenizerService]:
    with ThreadPoolExecutor(1, "tokenizer") as executor:
        yield TokenizerService(tokenizer, executor)


async def test_it_tokenizes_and_decodes(service: TokenizerService) -> None:
    rows = await service.tokenize(("ab",), add_special_tokens=True)
    assert [row.ids for row in rows] == [[97, 98, 0]]
    assert await service.decode(((97, 98, 0),), skip_special_tokens=True) == ["ab"]


async def test_errors_are_those_of_the_service(
    tokenizer: ObservedTokenizer, service: TokenizerService
) -> None:
    with pytest.raises(InvalidRequest):
        await service.decode(((-1,),), skip_special_tokens=True)
    tokenizer.error = ZeroDivisionError()
    with pytest.raises(InferenceError, match="ZeroDivisionError"):
        await service.tokenize(("a",), add_special_tokens=False)


async def test_it_runs_outside_the_event_loop(
    tokenizer: ObservedTokenizer, service: TokenizerService
) -> None:
    await service.tokenize(("a",), add_special_tokens=False)
    assert tokenizer.threads == ["tokenizer_0"]


async def test_another_call_is_served_between_the_parts_of_a_large_one(
    service: TokenizerService,
) -> None:
    texts = tuple(f"{i:016}" * 1000 for i in range(20))
    large = asyncio.create_task(service.tokenize(texts, add_special_tokens=False))
    await asyncio.sleep(0)
    await service.tokenize(("small",), add_special_tokens=False)
    assert not large.done()
    rows = await large
    assert ["".join(row.tokens) for row in rows] == list(texts)
