"""The loss of a cache that rounds vectors."""

from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.cache.codec import Int8VectorCodec, VectorCodec
from serve_app.engines.base import ModelInput, Rows
from serve_app.meter import Meter
from serve_app.scheduler.engine_pool import EnginePool, PooledModel
from serve_app.service.cache_loss import measure_cache_loss
from serve_app.tasks import Task
from tests.fakes import DIM, SPEC, FakeEngine


def ranges(end: float) -> Int8VectorCodec:
    return Int8VectorCodec(np.array([[-end] * DIM, [end] * DIM], dtype=np.float32))


def test_the_loss_grows_with_the_steps_and_with_what_is_clipped() -> None:
    engine = FakeEngine()
    half = measure_cache_loss(engine, SPEC, "float16", VectorCodec(DIM, "float16"))
    fitting = measure_cache_loss(engine, SPEC, "int8", ranges(1))
    wide = measure_cache_loss(engine, SPEC, "int8", ranges(50))
    narrow = measure_cache_loss(engine, SPEC, "int8", ranges(0.1))
    assert half.cosine_min > 0.9999999
    assert half.neighbor_agreement == 1
    assert half.cosine_min > fitting.cosine_min > 0.9999
    assert fitting.cosine_mean > fitting.cosine_min > wide.cosine_min
    assert fitting.neighbor_agreement > wide.neighbor_agreement
    assert fitting.cosine_min > 0.95 > narrow.cosine_min
    assert half.texts > 25


def test_a_text_without_a_vector_loses_nothing() -> None:
    class BlankEngine(FakeEngine):
        def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
            return np.zeros((len(batch), DIM), dtype=np.float32)

    assert measure_cache_loss(BlankEngine(), SPEC, "int8", ranges(1)).cosine_min == 1


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_pool_measures_once_and_reports(is_measured: bool) -> None:
    def measure(engine: object) -> object:
        calls.append(engine)
        return measure_cache_loss(FakeEngine(), SPEC, "int8", ranges(1))

    calls = list[object]()
    model = PooledModel(
        "fake",
        FakeEngine,
        {},
        measure_loss=measure if is_measured else None,  # type: ignore[arg-type]
    )
    pool = EnginePool({"id": model}, threads=1, cpus=frozenset((0,)), meter=Meter())
    loss = pool.describe("id").cache_loss
    assert (loss is not None, len(calls)) == (is_measured, is_measured)
