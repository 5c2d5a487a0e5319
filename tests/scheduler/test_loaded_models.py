"""Which models stay in memory, and who waits for whom."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from serve_app.engines.base import Engine
from serve_app.errors import Unavailable
from serve_app.scheduler.loaded_models import LoadedModels
from tests.fakes import FakeEngine


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Loaders(dict[str, Callable[[], Engine]]):
    """Loaders of the models a, b and c; records each load."""

    def __init__(self) -> None:
        super().__init__({name: partial(self._load, name) for name in "abc"})
        self.loads: list[str] = []
        self.failing = ""

    def _load(self, name: str) -> Engine:
        if name == self.failing:
            raise RuntimeError("no memory")
        self.loads.append(name)
        return FakeEngine()


@pytest.fixture
def loaders() -> Loaders:
    return Loaders()


async def use(models: LoadedModels, name: str) -> None:
    model = models.hold(name) or (await models.load(name))[0]
    models.release(model)


async def test_without_a_limit_all_stay_in_memory(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor)
    for name in "cabcab":
        await use(models, name)
    assert loaders.loads == ["a", "b", "c"]


async def test_the_least_recently_used_model_is_unloaded(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor, max_loaded=2)
    for name in "aacab":
        await use(models, name)
    assert loaders.loads == ["a", "b", "c", "b"]
    assert [models.find(name) is not None for name in "abc"] == [True, True, False]


async def test_a_model_in_use_stays_until_it_is_released(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor, max_loaded=1)
    held = models.hold("a")
    assert held is not None
    waiting = asyncio.create_task(models.load("b"))
    await asyncio.sleep(0.01)
    assert loaders.loads == ["a"]
    models.release(held)
    await waiting
    assert loaders.loads == ["a", "b"]


async def test_constant_use_of_the_others_keeps_no_model_out(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor, max_loaded=2)

    async def use_for_ever(name: str) -> None:
        while True:
            model = models.hold(name) or (await models.load(name))[0]
            await asyncio.sleep(0.001)
            models.release(model)

    others = [asyncio.create_task(use_for_ever(name)) for name in "aaabbb"]
    async with asyncio.timeout(30):
        await use(models, "c")
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def test_a_model_stays_if_the_caller_that_waited_for_it_leaves(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor, max_loaded=1)
    held = models.hold("a")
    assert held is not None
    waiting = asyncio.create_task(models.load("b"))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert models.find("a") is held.engine
    models.release(held)
    await use(models, "a")
    assert loaders.loads == ["a"]


async def test_a_model_that_can_not_be_loaded_is_an_error_and_is_tried_again(
    loaders: Loaders, executor: ThreadPoolExecutor
) -> None:
    models = LoadedModels(loaders, executor, max_loaded=2)
    loaders.failing = "c"
    with pytest.raises(Unavailable, match="can't be loaded"):
        await models.load("c")
    await asyncio.gather(use(models, "a"), use(models, "b"))
    loaders.failing = ""
    await use(models, "c")
    assert loaders.loads[-1] == "c"
