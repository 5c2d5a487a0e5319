"""A replica that does everything: settings change while it serves, and its methods for Ray jobs."""

import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import PIL.Image
import pytest
from ray.serve.schema import ReplicaRank

from serve_app.config import AppConfig, TracingConfig
from serve_app.deployments import http_replica, replica_engine
from serve_app.deployments.embed_server import EmbedServer
from serve_app.deployments.replica_engine import ReplicaCpus
from serve_app.engines.base import Engine, ModelInput, Rows
from serve_app.errors import (
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    UnsupportedOperation,
)
from serve_app.inputs import Image
from serve_app.model_prep.engine_selection import EngineSelection, load_engine, select_engines
from serve_app.tasks import Task
from serve_app.types import Float32
from tests.deployments.conftest import RANK
from tests.fakes import FakeEngine, as_text, fake_vector
from tests.otlp_receiver import otlp_receiver

SECOND_RANK = ReplicaRank(rank=1, node_rank=0, local_rank=1)
#: The class without Ray's wrapper, which needs a running Ray.
REPLICA: Any = EmbedServer.__mro__[1]


class PinnedEngine(FakeEngine):
    """Records the CPUs that batches may use."""

    def __init__(self) -> None:
        super().__init__()
        self.cpus: list[set[int]] = []

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        self.cpus.append(os.sched_getaffinity(0))
        return super().run(task, batch)


class ClosedByTest(REPLICA):  # type: ignore[misc]
    """Isn't closed when it is collected: that takes an event loop."""

    def __del__(self) -> None:
        pass


@pytest.fixture
def engine() -> PinnedEngine:
    return PinnedEngine()


@asynccontextmanager
async def running(
    engine: FakeEngine,
    config: AppConfig,
    selections: tuple[EngineSelection, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Any]:
    async def http_host() -> str:
        return "127.0.0.1"

    async def no_export(*arguments: object) -> None:
        """Ray's metrics need a running Ray."""

    monkeypatch.setattr(http_replica, "http_host", http_host)
    monkeypatch.setattr(http_replica, "export", no_export)

    def load(selection: EngineSelection, threads: int) -> Engine:
        if selection.spec.name == "words":
            return engine
        return load_engine(selection, threads=threads)

    replica = ClosedByTest(config, selections, load=load)
    await replica.reconfigure(None, RANK)
    engine.batches.clear()  # the warm-up
    yield replica
    engine.release()
    await REPLICA.__del__(replica)


@pytest.fixture
async def replica(
    engine: PinnedEngine,
    config: AppConfig,
    selections: tuple[EngineSelection, ...],
    assign_gpus: object,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Any]:
    async with running(engine, config, selections, monkeypatch) as replica:
        yield replica


async def test_it_embeds_for_ray_jobs(replica: Any, engine: PinnedEngine) -> None:
    vectors = await replica.embed(["a", "b", "a"])
    assert np.array_equal(vectors, [fake_vector(text) for text in "aba"])
    assert np.array_equal(await replica.embed("b"), [fake_vector("b")])
    assert [sorted(batch) for batch in engine.batches] == [["a", "b"]]
    with pytest.raises(ModelNotFound):
        await replica.embed(["a"], model="another")
    with pytest.raises(UnsupportedOperation):
        await replica.rerank("a", ["b"])


async def test_a_call_of_a_job_is_part_of_its_trace(
    config: AppConfig,
    selections: tuple[EngineSelection, ...],
    assign_gpus: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    context = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    with otlp_receiver() as collector:
        tracing = TracingConfig(endpoint=collector.url)
        traced = config.model_copy(update={"tracing": tracing, "topology": "colocated"})
        async with running(FakeEngine(), traced, selections, monkeypatch) as replica:
            await replica.embed(["a"], trace_context=context)
            await replica.embed(["a"])
    handle, other = (span for span in collector.spans if span.name == "handle embed")
    assert (handle.trace_id, handle.parent_id, other.parent_id) == (trace_id, span_id, "")
    assert handle.resource["embedserve.deployment"] == "EmbedServer"
    assert {("handle embed", "cache"), ("infer", "batch")} <= collector.tree(trace_id)


async def test_each_model_has_its_own_vectors_and_space(
    replica: Any, selections: tuple[EngineSelection, ...]
) -> None:
    texts = ["two words", "words"]
    engine = load_engine(selections[1], threads=1)
    expected = engine.run("embed", engine.tokenizer.encode(texts))
    for _ in range(2):  # computed, and cached
        assert np.array_equal(await replica.embed(texts), [fake_vector(text) for text in texts])
        assert np.array_equal(await replica.embed(texts, model="more"), expected)
    spaces = [await replica.space(), await replica.space("words"), await replica.space("others")]
    assert spaces == [selections[i].spec.space_id for i in (0, 0, 1)]


async def test_models_share_a_replica_and_never_a_batch(replica: Any, engine: PinnedEngine) -> None:
    def embed(i: int, model: str) -> Any:
        return replica.embed([f"{i} {model}"], model=model)

    calls = [(i, model) for i in range(20) for model in ("words", "others")]
    await asyncio.gather(*(embed(i, model) for i, model in calls))
    computed = [text for batch in engine.batches for text in batch]
    assert sorted(computed) == sorted(f"{i} words" for i in range(20))


async def test_it_warms_reports_and_purges_its_cache(replica: Any) -> None:
    assert await replica.warm(["a", "b"]) == (2, 2)
    assert await replica.warm(["a", "b", "c"]) == (3, 1)
    assert await replica.warm(["a"], model="others") == (1, 1)
    report = await replica.cache_report()
    assert (report.memory.entries, report.state.state, report.store) == (4, "off", None)
    assert report.models == (("words", 2, 0, 3), ("others", 0, 0, 1))
    assert await replica.purge_cache("another") is None
    assert await replica.purge_cache("words") == 4
    assert (await replica.cache_report()).memory.entries == 0


async def test_settings_of_requests_change_while_it_serves(replica: Any) -> None:
    await replica.embed(["a", "b"])
    await replica.reconfigure({"max_texts_per_request": 1}, RANK)
    with pytest.raises(InvalidRequest):
        await replica.embed(["a", "b"])
    await replica.reconfigure({"l1_max_bytes": 0}, RANK)
    assert len(await replica.embed(["a", "b"])) == 2
    assert (await replica.cache_report()).memory.entries == 0


async def test_settings_of_the_engine_change_while_it_serves(
    replica: Any, engine: PinnedEngine
) -> None:
    await replica.reconfigure({"max_batch_texts": 1}, RANK)
    await replica.embed(["a", "b", "c"])
    assert engine.batches == [["a"], ["b"], ["c"]]
    engine.hold()
    running = asyncio.create_task(replica.embed(["running"]))
    await until(lambda: ["running"] in engine.batches)
    await replica.reconfigure({"max_queued_tokens": 640}, RANK)

    def embed(number: int) -> "asyncio.Task[Float32]":
        texts = [f"{number} {i} is a text of 16 tokens" for i in range(4)]
        return asyncio.create_task(replica.embed(texts, lane="bulk"))

    queued = [embed(number) for number in range(10)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await embed(10)
    await replica.reconfigure({}, RANK)
    accepted = embed(11)
    await asyncio.sleep(0.01)
    engine.release()
    await asyncio.gather(running, *queued, accepted)


async def test_an_engine_that_stalls_fails_the_health_check(
    replica: Any, engine: PinnedEngine
) -> None:
    await replica.check_health()
    engine.hold()
    running = asyncio.create_task(replica.embed(["running"]))
    await until(lambda: ["running"] in engine.batches)
    stats = await replica.record_autoscaling_stats()
    assert stats["queued_interactive_tokens"] == len("running")
    await replica.check_health()
    await replica.reconfigure({"stall_timeout_s": 1}, RANK)
    await asyncio.sleep(1.1)
    with pytest.raises(InferenceError):
        await replica.check_health()
    engine.release()
    await running
    await replica.check_health()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
async def test_another_rank_moves_the_engine_to_other_cpus(
    replica: Any, engine: PinnedEngine
) -> None:
    cpus = []
    for rank in (RANK, SECOND_RANK, RANK):
        await replica.reconfigure(None, rank)
        engine.cpus.clear()
        await replica.embed(["a"], use_cache=False)
        cpus += engine.cpus
    first, second = ({cpu} for cpu in sorted(os.sched_getaffinity(0))[:2])
    assert cpus == [first, second, first]


@pytest.mark.usefixtures("assign_gpus")
def test_replicas_of_all_deployments_have_cpus_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_engine, "available_cpus", lambda: frozenset(range(4)))
    models = [
        {"name": f"m{i}", "source": f"hashing:{8 + i}", "deployment": name}
        for i, name in enumerate(("First", "Second", "First"))
    ]
    config = AppConfig.parse({"models": models})
    cpus = [ReplicaCpus(config, name).of_rank(i) for i in range(2) for name in ("First", "Second")]
    assert cpus == [{0}, {1}, {2}, {3}]


@pytest.mark.usefixtures("assign_gpus")
def test_a_container_with_less_time_than_cpus_is_not_pinned_and_neither_is_a_gpu_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpus = frozenset(range(4))
    monkeypatch.setattr(replica_engine, "available_cpus", lambda: cpus)
    models = [
        {"name": "m", "source": "path:m", "deployment": "Gpu", "device": "cuda"},
        {"name": "n", "source": "hashing:8"},
    ]
    config = AppConfig.parse({"models": models})
    assert ReplicaCpus(config, "Gpu").of_rank(0) == cpus
    assert ReplicaCpus(config, "Embedder").of_rank(1) == {1}
    monkeypatch.setattr(replica_engine, "read_cpu_quota", lambda: 3.5)
    assert ReplicaCpus(config, "Embedder").of_rank(1) == cpus


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_space_without_a_model_is_that_of_the_vectors_without_a_model(
    config: AppConfig, selections: tuple[EngineSelection, ...], assign_gpus: object
) -> None:
    first, second = config.served_models
    second = second.model_copy(update={"default_for": ("embed",)})
    replica = ClosedByTest(config.model_copy(update={"models": (first, second)}), selections)
    assert await replica.space() == selections[1].spec.space_id
    await REPLICA.__del__(replica)


def image_file(color: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (len(color), 1), color).save(file, "PNG")
    return file.getvalue()


def data_uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


class ImageEngine(FakeEngine):
    """Embeds images as the fake tokenizer reads them."""

    tasks = frozenset[Task](("embed", "embed_images"))


async def test_it_embeds_images_for_ray_jobs(
    replica: Any, config: AppConfig, selections: tuple[EngineSelection, ...]
) -> None:
    first, second = selections
    spec = replace(second.spec, tasks=("embed", "embed_images"))
    images = ClosedByTest(
        config,
        (first, replace(second, spec=spec)),
        load=lambda selection, threads: (
            ImageEngine() if selection.spec is spec else load_engine(selection, threads=threads)
        ),
    )
    await images.reconfigure(None, RANK)
    files = [image_file(color) for color in ("red", "green")]
    vectors = await images.embed_images([*files, data_uri(files[0])])
    expected = [fake_vector(as_text(Image(file))[:16]) for file in files]
    assert np.array_equal(vectors, [*expected, expected[0]])
    assert np.array_equal(await images.embed_images(files[1]), expected[1:])
    with pytest.raises(InvalidRequest, match="URLs are not fetched"):
        await images.embed_images(["https://images.test/a.png"])
    with pytest.raises(InvalidRequest, match="not a data URI"):
        await images.embed_images(["a.png"])
    with pytest.raises(UnsupportedOperation):
        await images.embed_images(files, model="words")
    with pytest.raises(UnsupportedOperation):
        await replica.embed_images(files)
    await REPLICA.__del__(images)


async def test_calls_of_ray_jobs_are_charged(
    config: AppConfig, assign_gpus: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def http_host() -> str:
        return "127.0.0.1"

    async def no_export(*arguments: object) -> None:
        """Ray's metrics need a running Ray."""

    monkeypatch.setattr(http_replica, "http_host", http_host)
    monkeypatch.setattr(http_replica, "export", no_export)
    priced = config.served_models[0].model_copy(update={"usd_per_1k_tokens": Decimal("0.001")})
    config = config.model_copy(update={"models": (priced,)})
    replica = ClosedByTest(config, select_engines(config))
    await replica.reconfigure(None, RANK)
    await replica.embed(["one", "two words"])
    await replica.embed(["one"])
    await replica.warm(["three more words"])
    totals = await replica.replica_totals()
    assert (totals.nano_usd, totals.saved_nano_usd) == (6000, 1000)
    await REPLICA.__del__(replica)


async def test_ray_jobs_get_the_first_model_of_an_alias_unless_they_require_the_second(
    engine: PinnedEngine,
    assign_gpus: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias = {
        "name": "alias",
        "model": "words",
        "canary": {"model": "second", "share": 1},
        "shadow": {"model": "second", "share": 1},
    }
    models = [{"name": "words", "source": "hashing:8"}, {"name": "second", "source": "hashing:16"}]
    config = AppConfig.parse({"models": models, "aliases": [alias], "cache": {"url": "none"}})
    async with running(engine, config, select_engines(config), monkeypatch) as replica:
        assert (await replica.embed(["a"], "alias")).shape == (1, 8)
        second = await replica.space("second")
        assert (await replica.embed(["a"], "alias", space=second)).shape == (1, 16)
        async with asyncio.timeout(30):
            while not (await replica.replica_sample()).shadows[0].outcomes:
                await asyncio.sleep(0.01)
    (shadow,) = (await replica.replica_sample()).shadows
    assert shadow.outcomes == {"compared": 1}
