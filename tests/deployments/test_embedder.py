import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from serve_app.config import AppConfig
from serve_app.deployments.embedder import Embedder
from serve_app.engines.base import Engine, TokenIds
from serve_app.errors import ConfigurationError
from serve_app.inputs import Input
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.types import EncodedVectors, TextGroup
from tests.deployments.conftest import RANK
from tests.fakes import SPEC, FakeEngine, FakeTokenizer

#: Long enough to be tokenized in the tokenizer's thread.
CANCELLED, REMAINING = "cancelled " * 400, "remaining " * 400


class SlowTokenizer(FakeTokenizer):
    """Blocks between `hold` and `release`."""

    def __init__(self) -> None:
        self.called, self._open = threading.Event(), threading.Event()
        self._open.set()

    def hold(self) -> None:
        self.called.clear()
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def encode(self, texts: Sequence[Input]) -> list[TokenIds]:
        self.called.set()
        assert self._open.wait(10), "The test held the tokenizer and never released it."
        return super().encode(texts)


@pytest.mark.usefixtures("assign_gpus")
async def test_a_call_cancelled_during_tokenization_is_not_computed(
    config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    engine, tokenizer = FakeEngine(), SlowTokenizer()
    engine.tokenizer = tokenizer
    embedder = Embedder(config, selections[:1], load=lambda selection, threads: engine)
    engine_id = selections[0].cached_spec.engine_id
    engine.batches.clear()  # the warm-up
    await embedder.reconfigure(None, RANK)
    tokenizer.hold()
    cancelled = asyncio.create_task(embedder.run(engine_id, (TextGroup((CANCELLED,)),)))
    await asyncio.to_thread(tokenizer.called.wait, 10)
    remaining = asyncio.create_task(embedder.run(engine_id, (TextGroup((REMAINING,)),)))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    tokenizer.release()
    (vectors,) = await remaining  # type: ignore[misc]  # the engine is its own
    assert isinstance(vectors, EncodedVectors)
    assert engine.batches == [[REMAINING[: SPEC.max_tokens]]]


@pytest.mark.usefixtures("assign_gpus")
async def test_a_caller_of_another_engine_gets_nothing(
    config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    engine = FakeEngine()
    embedder = Embedder(config, selections[:1], load=lambda selection, threads: engine)
    engine.batches.clear()  # the warm-up
    await embedder.reconfigure(None, RANK)
    assert await embedder.run("f00d-fp32/another", (TextGroup(("a",)),)) is None
    assert await embedder.tokenize("f00d-fp32/another", ("a",), True) is None
    assert await embedder.decode("f00d-fp32/another", ((1,),), True) is None
    assert await embedder.describe("f00d-fp32/another") is None
    assert engine.batches == []


@pytest.mark.parametrize(
    ("device", "gpus", "other_gpus", "message"),
    [("cuda", [], [0], "set `num_gpus`"), ("cpu", [0], [], "set `device: cuda`")],
    ids=["no GPU for cuda", "GPU for cpu"],
)
def test_a_replica_with_another_device_than_configured_does_not_start(
    device: str,
    gpus: list[int],
    other_gpus: list[int],
    message: str,
    assign_gpus: Callable[[list[int]], None],
    config: AppConfig,
    selections: tuple[EngineSelection, ...],
) -> None:
    def load(selection: EngineSelection, threads: int) -> Engine:
        return FakeEngine()

    selections = tuple(replace(selection, device=device) for selection in selections)
    assign_gpus(gpus)
    with pytest.raises(ConfigurationError, match=message):
        Embedder(config, selections, load=load)
    assign_gpus(other_gpus)
    Embedder(config, selections, load=load)
