import asyncio
import platform
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import ReplicaRank

from serve_app.config import TOKEN_POLICY, AppConfig
from serve_app.deployments.embedder import Embedder
from serve_app.engines.affinity import available_cpus
from serve_app.engines.base import Engine, TokenIds
from serve_app.engines.cpu_topology import format_cpus
from serve_app.errors import ConfigurationError
from serve_app.inputs import Input
from serve_app.model_prep.engine_selection import EngineSelection
from serve_app.scheduler.replica_load import ReplicaLoad
from serve_app.types import EncodedVectors, EngineInfo, TextGroup
from tests.deployments.conftest import RANK
from tests.fakes import SPEC, FakeEngine, FakeTokenizer

SECOND_RANK = ReplicaRank(rank=1, node_rank=0, local_rank=1)
#: Long enough to be tokenized in the tokenizer's thread.
CANCELLED, REMAINING = "cancelled " * 400, "remaining " * 400
#: Long enough to be tokenized by itself: Ray collects calls for the event loop of the first test.
UNCOLLECTED = "long " * 4000


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


class ClosedByTest(Embedder):
    """Isn't closed when it is collected: that takes an event loop."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


@pytest.mark.usefixtures("assign_gpus")
async def test_a_call_cancelled_during_tokenization_is_not_computed(
    config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    engine, tokenizer = FakeEngine(), SlowTokenizer()
    engine.tokenizer = tokenizer
    embedder = ClosedByTest(config, selections[:1], load=lambda selection, threads: engine)
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
    embedder = ClosedByTest(config, selections[:1], load=lambda selection, threads: engine)
    engine.batches.clear()  # the warm-up
    await embedder.reconfigure(None, RANK)
    assert await embedder.run("f00d-fp32/another", (TextGroup(("a",)),)) is None
    assert await embedder.tokenize("f00d-fp32/another", ("a",), True) is None
    assert await embedder.decode("f00d-fp32/another", ((1,),), True) is None
    assert await embedder.describe("f00d-fp32/another") is None
    assert engine.batches == []


@pytest.mark.usefixtures("assign_gpus")
@pytest.mark.parametrize(("setting", "accepted"), [("headroom", True), ("headrom", False)])
def test_it_does_not_start_with_unknown_settings_of_the_policy(
    config: AppConfig, selections: tuple[EngineSelection, ...], setting: str, accepted: bool
) -> None:
    policy = AutoscalingPolicy(policy_function=TOKEN_POLICY, policy_kwargs={setting: 0.3})  # type: ignore[no-untyped-call]
    deployment = serve.get_replica_context()._deployment_config
    deployment.autoscaling_config = AutoscalingConfig(policy=policy)
    refused = pytest.raises(ConfigurationError, match=r"Embedder: .*headrom: there is no such")
    with nullcontext() if accepted else refused:
        ClosedByTest(config, selections[:1], load=lambda selection, threads: FakeEngine())


@pytest.mark.usefixtures("assign_gpus")
async def test_it_reports_its_load(
    config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    engine = FakeEngine()
    embedder = ClosedByTest(config, selections[:1], load=lambda selection, threads: engine)
    await embedder.reconfigure(None, RANK)
    engine_id = selections[0].cached_spec.engine_id
    engine.batches.clear()  # the warm-up
    engine.hold()
    running = asyncio.create_task(embedder.run(engine_id, (TextGroup((UNCOLLECTED,)),)))
    async with asyncio.timeout(30):
        while not engine.batches:
            await asyncio.sleep(0.001)
    load = ReplicaLoad.from_metrics(await embedder.record_autoscaling_stats())
    engine.release()
    await running
    assert load is not None
    assert load.queued_interactive_tokens == SPEC.max_tokens
    await Embedder.__del__(embedder)


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
        ClosedByTest(config, selections, load=load)
    assign_gpus(other_gpus)
    ClosedByTest(config, selections, load=load)


@pytest.mark.parametrize(
    ("setting", "assigned", "share"),
    [(None, 0.25, 0.25), (None, 1.0, None), (None, 2.0, None), (0.5, 0.25, 0.5), (0.9, 1.0, 0.9)],
)
def test_a_replica_on_a_part_of_a_gpu_gets_that_part_of_its_memory(
    setting: float | None,
    assigned: float,
    share: float | None,
    assign_gpus: Callable[[list[int]], None],
    config: AppConfig,
    selections: tuple[EngineSelection, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = []

    def load(selection: EngineSelection, threads: int, **options: float) -> Engine:
        loaded.append(options.get("gpu_memory_share"))
        return FakeEngine()

    assign_gpus([0])
    resources = {"CPU": 1.0, "GPU": assigned}
    runtime = SimpleNamespace(get_assigned_resources=lambda: resources)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: runtime)
    selections = tuple(replace(selection, device="cuda") for selection in selections)
    ClosedByTest(config.model_copy(update={"gpu_memory_share": setting}), selections, load=load)
    assert loaded == [share, share]


@pytest.mark.usefixtures("assign_gpus")
async def test_a_replica_reports_where_it_computes(
    config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    embedder = ClosedByTest(config, selections)
    info = await embedder.describe(selections[0].cached_spec.engine_id)
    assert isinstance(info, EngineInfo)
    assert info.placement is not None
    assert info.placement.node == platform.node()
    assert info.placement.cpus == format_cpus([min(available_cpus())])
    second = min(available_cpus() - {min(available_cpus())}, default=None)
    if second is not None:
        await embedder.reconfigure(None, SECOND_RANK)
        info = await embedder.describe(selections[0].cached_spec.engine_id)
        assert isinstance(info, EngineInfo)
        assert info.placement is not None
        assert info.placement.cpus == str(second)
