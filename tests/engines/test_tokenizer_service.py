from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread
from typing import Any

import pytest

from serve_app.engines.tokenizer_service import TokenizerService
from serve_app.errors import InferenceError, InvalidRequest
from tests.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def speller(engine: FakeEngine) -> Iterator[TokenizerService]:
    with ThreadPoolExecutor(1, "apart") as thread:
        yield TokenizerService(engine, thread)


async def test_it_asks_the_engine(speller: TokenizerService) -> None:
    spelled = await speller.spell(("ab",), special=True)
    assert isinstance(spelled, list)
    assert [spelling.ids for spelling in spelled] == [[97, 98, 0]]
    assert await speller.decode(((97, 98, 0),), skip_special=True) == ["ab"]


async def test_an_error_of_the_service_is_a_value_and_any_other_too(
    engine: FakeEngine, speller: TokenizerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(await speller.decode(((-1,),), skip_special=True), InvalidRequest)
    monkeypatch.setattr(engine, "spell", lambda texts, special: 1 / 0)
    failed = await speller.spell(("a",), special=False)
    assert isinstance(failed, InferenceError)
    assert "ZeroDivisionError" in str(failed)


async def test_the_event_loop_goes_on_meanwhile(
    engine: FakeEngine, speller: TokenizerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spell(texts: Any, special: bool) -> list[Any]:
        asked.append(current_thread().name)
        return []

    monkeypatch.setattr(engine, "spell", spell)
    await speller.spell(("a",), special=False)
    assert asked == ["apart_0"]
