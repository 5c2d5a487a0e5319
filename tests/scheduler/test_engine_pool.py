"""Engines with their threads, from groups to cache values."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.codec import VectorCodec, task_codecs
from serve_app.config import EmbedderSettings
from serve_app.engines.base import ModelInput, Rows
from serve_app.errors import EmbedServeError, InferenceError, Unavailable
from serve_app.meter import Meter
from serve_app.scheduler.engine_pool import EnginePool, PooledModel
from serve_app.tasks import Task
from serve_app.types import EncodedVectors, Float32, TextGroup, Vectors
from tests.fakes import DIM, SPEC, FakeEngine, fake_vector

ENGINE = SPEC.engine_id
CODECS = task_codecs(SPEC)
CODEC = VectorCodec(DIM)
ALL_CPUS = frozenset(os.sched_getaffinity(0))


class GatedEngine(FakeEngine):
    """Each batch waits for `allow`; records the CPUs that batches may use."""

    def __init__(self) -> None:
        super().__init__()
        self.cpus: list[set[int]] = []
        self._allowed = threading.Semaphore(1)  # the warm-up

    def allow(self, batches: int) -> None:
        self._allowed.release(batches)

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        assert self._allowed.acquire(timeout=10), "The test never allowed the batch."
        self.cpus.append(os.sched_getaffinity(0))
        return super().run(task, batch)


def pooled(engine: FakeEngine) -> PooledModel:
    encoders = {task: codec.encode for task, codec in CODECS.items()}
    return PooledModel("fake", lambda: engine, encoders, ("another at bf16: no",))


class Delivered(dict[int, EncodedVectors | Exception]):
    """What was delivered, by index."""

    def __call__(self, index: int, result: EncodedVectors | Exception) -> None:
        assert index not in self, "The result was delivered twice."
        self[index] = result

    def vectors(self, index: int) -> Float32:
        result = self[index]
        assert isinstance(result, EncodedVectors)
        return CODEC.decode(result).values


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
async def pool(engine: GatedEngine) -> AsyncIterator[EnginePool]:
    pool = new_pool(engine)
    pool.start()
    pool.apply(EmbedderSettings(max_batch_texts=1), ALL_CPUS)
    yield pool
    engine.allow(100)
    await pool.stop()


def new_pool(engine: GatedEngine, cpus: frozenset[int] = ALL_CPUS) -> EnginePool:
    model = pooled(engine)
    pool = EnginePool({ENGINE: model}, threads=1, cpus=cpus, meter=Meter())
    engine.batches.clear()  # the warm-up
    engine.cpus.clear()
    return pool


def start(engine: EnginePool, *groups: TextGroup) -> "tuple[Delivered, asyncio.Task[None]]":
    delivered = Delivered()
    return delivered, asyncio.create_task(engine.run(ENGINE, groups, delivered))


async def until_delivered(delivered: Delivered, count: int) -> None:
    async with asyncio.timeout(30):
        while len(delivered) < count:
            await asyncio.sleep(0.001)


async def test_a_group_is_delivered_before_the_others_are_computed(
    engine: GatedEngine, pool: EnginePool
) -> None:
    delivered, task = start(pool, *(TextGroup((text,)) for text in "abc"))
    for count in (1, 2):
        engine.allow(1)
        await until_delivered(delivered, count)
        assert len(delivered) == count
        assert not task.done()
    engine.allow(1)
    await task
    for i, text in enumerate("abc"):
        assert np.array_equal(delivered.vectors(i), [fake_vector(text)])


async def test_the_error_of_a_group_is_a_value(engine: GatedEngine, pool: EnginePool) -> None:
    engine.allow(100)
    groups = [TextGroup((text,)) for text in ("a", "boom", "b")]
    delivered, task = start(pool, *groups)
    await task
    assert isinstance(delivered[1], InferenceError)
    assert np.array_equal(delivered.vectors(0), [fake_vector("a")])
    assert np.array_equal(delivered.vectors(2), [fake_vector("b")])


async def test_vectors_that_cannot_be_encoded_are_an_error_of_their_group(
    engine: GatedEngine,
) -> None:
    def encode(vectors: Vectors) -> EncodedVectors:
        if len(vectors.values) == 2:
            raise ValueError("Not these.")
        return CODEC.encode(vectors)

    model = pooled(engine)._replace(encoders={"embed": encode})
    pool = EnginePool({ENGINE: model}, threads=1, cpus=ALL_CPUS, meter=Meter())
    pool.start()
    engine.allow(100)
    delivered, task = start(pool, TextGroup(("a", "b")), TextGroup(("c",)))
    async with asyncio.timeout(30):
        await task
    assert isinstance(delivered[0], InferenceError)
    assert np.array_equal(delivered.vectors(1), [fake_vector("c")])
    await pool.stop()


async def test_a_cancelled_call_is_neither_computed_nor_delivered(
    engine: GatedEngine, pool: EnginePool, caplog: pytest.LogCaptureFixture
) -> None:
    running, running_task = start(pool, TextGroup(("running",)))
    await asyncio.sleep(0.01)
    cancelled, task = start(pool, TextGroup(("queued",)), TextGroup(("too",)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    last, last_task = start(pool, TextGroup(("last",)))
    engine.allow(2)
    await asyncio.gather(running_task, last_task)
    assert cancelled == {}
    assert engine.batches == [["running"], ["last"]]
    assert [len(running), len(last)] == [1, 1]
    assert caplog.records == []


async def test_settings_apply_to_later_calls(engine: GatedEngine, pool: EnginePool) -> None:
    pool.apply(EmbedderSettings(max_request_tokens=64), ALL_CPUS)
    large = TextGroup(tuple(f"{i} of ten characters" for i in range(10)))  # 10 x 16 tokens
    delivered, task = start(pool, large, TextGroup(("small",)))
    engine.allow(100)
    await task
    assert isinstance(delivered[0], EmbedServeError)
    assert np.array_equal(delivered.vectors(1), [fake_vector("small")])
    pool.apply(EmbedderSettings(), ALL_CPUS)
    delivered, task = start(pool, large)
    await task
    assert isinstance(delivered[0], EncodedVectors)


@pytest.mark.skipif(len(ALL_CPUS) < 2, reason="needs two CPUs")
async def test_the_threads_move_to_other_cpus(engine: GatedEngine) -> None:
    first, second = ({cpu} for cpu in sorted(ALL_CPUS)[:2])
    pool = new_pool(engine, cpus=frozenset(first))
    pool.start()
    engine.allow(20)
    for cpus in (first, second):
        pool.apply(EmbedderSettings(max_batch_texts=1), frozenset(cpus))
        engine.cpus.clear()
        # More texts than threads, which the pool starts when it needs them.
        await start(pool, TextGroup(tuple("abcdef")))[1]
        assert engine.cpus == [cpus] * 6
    assert os.sched_getaffinity(0) == ALL_CPUS  # the event loop runs on any
    await pool.stop()


async def test_groups_fail_once_it_has_stopped(engine: GatedEngine) -> None:
    pool = new_pool(engine)
    pool.start()
    queued, task = start(pool, TextGroup(("a",)), TextGroup(("b",)))
    await asyncio.sleep(0.01)
    engine.allow(1)
    await pool.stop()
    later, later_task = start(pool, TextGroup(("c",)))
    await asyncio.gather(task, later_task)
    assert isinstance(queued[1], Unavailable)
    assert isinstance(later[0], Unavailable)


async def test_token_vectors(engine: GatedEngine, pool: EnginePool) -> None:
    engine.allow(100)
    groups = [TextGroup((text,), task="embed_tokens") for text in ("abc", "boom")]
    delivered, task = start(pool, *groups)
    await task
    result = delivered[0]
    assert isinstance(result, EncodedVectors)
    (vectors,) = CODECS["embed_tokens"].decode(result).values
    assert np.array_equal(vectors, [fake_vector(character) for character in "abc"])
    assert isinstance(delivered[1], InferenceError)


async def test_a_new_process_knows_the_speed_that_the_previous_one_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    capacities = []
    for keeps_speed in (True, True, False):
        engine = GatedEngine()
        model = pooled(engine)._replace(keeps_speed=keeps_speed)
        pool = EnginePool({ENGINE: model}, threads=1, cpus=ALL_CPUS, meter=Meter())
        pool.start()
        capacities.append(pool.sample_load().capacity_tokens_per_s)
        engine.allow(100)
        await start(pool, TextGroup(("a text",)))[1]
        await pool.stop()
    assert capacities[1] > 0
    assert (capacities[0], capacities[2]) == (0, 0)


async def test_it_describes_its_engine_and_load(engine: GatedEngine, pool: EnginePool) -> None:
    info = pool.describe(ENGINE)
    assert (info.engine, info.rejected) == ("fake", ("another at bf16: no",))
    _, running = start(pool, TextGroup(("12345",)))
    await asyncio.sleep(0.01)
    _, bulk = start(pool, TextGroup(("678",), lane="bulk"))
    await asyncio.sleep(0.01)
    load = pool.sample_load()
    assert (load.queued_interactive_tokens, load.queued_bulk_tokens) == (5, 3)
    assert load.oldest_interactive_s == 0  # it is being computed
    engine.allow(2)
    await asyncio.gather(running, bulk)
    load = pool.sample_load()
    assert (load.queued_interactive_tokens, load.queued_bulk_tokens) == (0, 0)
    assert load.capacity_tokens_per_s > 0
    assert load.startup_s > 0
    assert load.is_plausible
