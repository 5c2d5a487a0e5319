"""A million distinct texts: memory stays below its limit."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import psutil

from serve_app.cache.codec import VectorCodec
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.config import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.models import resolve
from serve_app.types import NO_TIMINGS, TextGroup, Tier, VectorRow, Vectors
from tests.fakes import coalesce

TEXTS, BATCH = 1_000_000, 1000
MAX_BYTES = 32 << 20
#: Memory of the process in addition: the arrays of a batch, and what the allocator retains.
SLACK_BYTES = 48 << 20


def test_a_million_distinct_texts_stay_below_the_limit() -> None:
    # In a process of its own: memory that other tests have freed would count.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_run).result()


def _run() -> None:
    asyncio.run(_look_up_a_million_texts())


async def _look_up_a_million_texts() -> None:
    spec = resolve(ModelConfig(name="words", source="hashing:64"))
    engine = HashingEngine(spec)
    memory = MemoryCache(MAX_BYTES)

    async def compute(group: TextGroup) -> Vectors:
        tokens = engine.tokenizer.encode(list(map(str, group.texts)))
        vectors = engine.run("embed", tokens)
        return Vectors.from_rows(
            [VectorRow(v, 1, False, Tier.COMPUTED) for v in vectors], NO_TIMINGS
        )

    codec = VectorCodec(spec.dim)
    lookup = Lookup(spec.space_id, {"embed": codec}, memory, coalesce(compute, codec))
    process = psutil.Process()
    before = process.memory_info().rss
    for start in range(0, TEXTS, BATCH):
        texts = tuple(f"text {i}" for i in range(start, start + BATCH))
        vectors = await lookup.run(TextGroup(texts))
        assert vectors.computed_count == BATCH
    assert memory.stats().bytes <= MAX_BYTES
    assert memory.stats().evictions > TEXTS // 2
    assert process.memory_info().rss - before <= MAX_BYTES + SLACK_BYTES
    again = await lookup.run(TextGroup(texts))
    assert again.computed_count < BATCH
    assert np.array_equal(again.values, engine.run("embed", engine.tokenizer.encode(texts)))
