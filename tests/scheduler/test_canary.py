"""The canary notices that the vectors of a model change."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve_app.cache.codec import task_codecs
from serve_app.config import EmbedderSettings, ProviderSettings
from serve_app.engines.base import ModelInput, Rows
from serve_app.errors import EmbedServeError, Unavailable
from serve_app.meter import Meter
from serve_app.metrics import VECTOR_DRIFT
from serve_app.providers.provider_pool import ProviderModel, ProviderPool
from serve_app.scheduler.canaries import CanarySchedule
from serve_app.scheduler.canary import MAX_DRIFT, Canary
from serve_app.scheduler.engine_pool import EnginePool, PooledModel
from serve_app.tasks import Task
from serve_app.types import Outputs, TextGroup
from tests.fakes import SPEC, FakeBackend, FakeEngine, as_vectors
from tests.providers.scripted_provider import ScriptedProvider

NEVER_S = 1e6


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def kept(cache_home: Path) -> list[Path]:
    """Returns the files of first vectors."""
    return [*cache_home.rglob("*.npy")]


class ChangingModel:
    """Embeds groups with vectors that a shift moves."""

    def __init__(self) -> None:
        self.backend = FakeBackend()
        self.shift: float = 0.0
        self.result: EmbedServeError | None = None
        self.is_loaded = True

    async def embed(self, group: TextGroup) -> Outputs | EmbedServeError | None:
        if not self.is_loaded:
            return None
        vectors = as_vectors(await self.backend.run(group))
        vectors.values[:, 0] += self.shift
        return self.result or vectors


@pytest.fixture
def model() -> ChangingModel:
    return ChangingModel()


def canary(model: ChangingModel, space_id: str = "f-fp32", interval_s: float = NEVER_S) -> Canary:
    return Canary("words", space_id, interval_s, model.embed, lambda: False)


async def test_a_change_is_measured_against_the_first_vectors_also_by_later_processes(
    model: ChangingModel, caplog: pytest.LogCaptureFixture
) -> None:
    first = canary(model)
    assert first.drift is None
    await first.measure()
    await first.measure()
    assert first.drift == 0
    model.shift = 0.01
    later = canary(model)
    await later.measure()
    assert later.drift is not None
    assert 0 < later.drift < MAX_DRIFT
    assert not caplog.records
    model.shift = 0.5
    await later.measure()
    assert later.drift > MAX_DRIFT
    (record,) = caplog.records
    assert "The vectors of words have moved" in record.message
    model.shift = 0.0
    await later.measure()
    assert later.drift == 0


async def test_texts_are_computed_in_the_bulk_lane_without_the_cache(model: ChangingModel) -> None:
    await canary(model).measure()
    (group,) = model.backend.groups
    assert (group.lane, group.use_cache, group.task) == ("bulk", False, "embed")
    assert len({*group.texts}) == len(group.texts) == 12


async def test_each_space_has_first_vectors_of_its_own(model: ChangingModel) -> None:
    await canary(model).measure()
    model.shift = 0.5
    other = canary(model, "f-bf16")
    await other.measure()
    assert other.drift == 0


async def test_a_damaged_file_is_replaced(model: ChangingModel, cache_home: Path) -> None:
    await canary(model).measure()
    (file,) = kept(cache_home)
    for content in (b"", file.read_bytes()[:-1], b"no array"):
        file.write_bytes(content)
        repaired = canary(model)
        await repaired.measure()
        assert repaired.drift == 0
    model.shift = 0.5
    await repaired.measure()
    assert repaired.drift is not None
    assert repaired.drift > MAX_DRIFT


async def test_a_model_that_is_not_available_is_not_measured(
    model: ChangingModel, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured = canary(model)
    model.is_loaded = False
    await measured.measure()
    model.is_loaded, model.result = True, Unavailable("It is down.")
    await measured.measure()
    assert measured.drift is None
    assert kept(cache_home) == []
    assert "was not measured: It is down." in caplog.text


async def wait_until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_it_goes_on_after_a_failure_and_waits_for_an_idle_moment(
    model: ChangingModel, cache_home: Path
) -> None:
    (cache_home / "embedserve").write_text("not a directory")
    busy = [True] * 3

    def is_busy() -> bool:
        assert not model.backend.groups or not busy
        return bool(busy and busy.pop())

    running = Canary("words", "f-fp32", 0.01, model.embed, is_busy)
    task = asyncio.create_task(running.run())
    await wait_until(lambda: len(model.backend.groups) > 2)
    assert (busy, running.drift) == ([], None)
    (cache_home / "embedserve").unlink()
    await wait_until(lambda: running.drift is not None)
    task.cancel()


class ChangingEngine(FakeEngine):
    shift: float = 0.0

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        rows = np.array([*super().run(task, batch)], dtype=np.float32)
        rows[:, 0] += self.shift
        return rows


@pytest.fixture
async def engine() -> ChangingEngine:
    return ChangingEngine()


@pytest.fixture
async def pool(engine: ChangingEngine) -> AsyncIterator[EnginePool]:
    encoders = {task: codec.encode for task, codec in task_codecs(SPEC).items()}
    schedule = CanarySchedule(SPEC.space_id, 0.01)
    models = {
        "watched": PooledModel("watched", lambda: engine, encoders, canary=schedule),
        "other": PooledModel("other", FakeEngine, encoders),
    }
    pool = EnginePool(models, threads=1, cpus=frozenset((0,)), meter=Meter())
    pool.start()
    pool.apply(EmbedderSettings(), frozenset((0,)))
    yield pool
    await pool.stop()


async def test_a_pool_reports_the_drift_of_its_engines(
    pool: EnginePool, engine: ChangingEngine
) -> None:
    await wait_until(lambda: pool.gauges()[VECTOR_DRIFT] == {("watched",): 0.0})
    assert pool.describe("other").drift is None
    engine.shift = 0.5
    await wait_until(lambda: (pool.describe("watched").drift or 0) > MAX_DRIFT)
    assert pool.gauges()[VECTOR_DRIFT] == {("watched",): pool.describe("watched").drift}


async def test_the_vectors_of_a_provider_are_measured_if_that_is_configured() -> None:
    provider, spec = ScriptedProvider(), replace(SPEC, max_tokens=512)
    encoders = {task: codec.encode for task, codec in task_codecs(SPEC).items()}

    def model(canary: CanarySchedule | None) -> ProviderModel:
        return ProviderModel(
            spec, "scripted", provider, ProviderSettings(), encoders, canary=canary
        )

    models = {"watched": model(CanarySchedule(SPEC.space_id, 0.01)), "other": model(None)}
    pool = ProviderPool(models, meter=Meter())
    pool.start()
    await wait_until(lambda: pool.describe("watched").drift == 0)
    assert pool.describe("other").drift is None
    assert pool.gauges()[VECTOR_DRIFT] == {(SPEC.name,): 0.0}
    await pool.stop()
    assert len(provider.calls[0]) == 12
