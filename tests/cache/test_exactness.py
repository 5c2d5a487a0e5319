"""A text has the same vector from every tier, bit for bit, whatever was requested before."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.cache.codec import VectorCodec
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.redis_store import RedisStore
from serve_app.config import IngressSettings, ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.jobs import EmbedJob
from serve_app.meter import Meter
from serve_app.models import resolve
from serve_app.results import EmbedResult
from serve_app.service.embed import EmbedService
from serve_app.types import NO_TIMINGS, CacheState, EngineInfo, TextGroup, Tier, VectorRow, Vectors
from serve_app.valkey.client import connect
from serve_app.web.dialects.openai_requests import render
from serve_app.web.schema.vector_encoding import VectorEncoder
from tests.fakes import FakeBackend, as_vectors, coalesce
from tests.valkey_server import ValkeyProcess

#: Two dimensions, and two token limits, which the last two models differ in.
MODELS = [("hashing:16", 4), ("hashing:64", 4), ("hashing:64", 6)]
WORDS = ["one", "two", "three", "four five six seven eight", "query: one", "ONE", "one "]
SPECS = [
    replace(
        resolve(ModelConfig(name="words", source=source, max_tokens=limit)),
        prompts={"query": "query: ", "document": ""},
    )
    for source, limit in MODELS
]
#: Limit that fits three small values, so that some are read from each tier.
L1_MAX_BYTES = 1500


class UncachedBackend(FakeBackend):
    """Computes every vector with the engine."""

    def __init__(self, model: int) -> None:
        super().__init__()
        self._engine = HashingEngine(SPECS[model])

    async def run(self, group: TextGroup) -> Vectors:
        tokens = self._engine.tokenizer.encode(list(map(str, group.prompted_inputs)))
        await asyncio.sleep(0)
        rows = zip(self._engine.run("embed", tokens), tokens, strict=True)
        return Vectors.from_rows(
            [VectorRow(vector, len(t.ids), t.truncated, Tier.COMPUTED) for vector, t in rows],
            NO_TIMINGS,
        )

    async def describe(self) -> EngineInfo:
        return self._engine.info

    async def cache_state(self) -> CacheState:
        return CacheState("off")


class CachedBackend(UncachedBackend):
    """Puts the L1 of an Ingress, the L1 of CacheLookup and a shared L2 before the engine."""

    def __init__(self, model: int, store: RedisStore) -> None:
        super().__init__(model)
        spec, codec = SPECS[model], VectorCodec(SPECS[model].dim)
        cache_lookup = Lookup(
            spec.space_id,
            {"embed": codec},
            MemoryCache(L1_MAX_BYTES),
            coalesce(super().run, codec),
            store=store,
        )
        self._ingress = Lookup(
            spec.space_id,
            {"embed": codec},
            MemoryCache(L1_MAX_BYTES),
            coalesce(cache_lookup.run_encoded, codec),
        )

    async def run(self, group: TextGroup) -> Vectors:
        return as_vectors(await self._ingress.run(group))


requests = st.builds(
    lambda model, texts, input_type, dimensions, encoding, use_cache, new: (
        model,
        EmbedJob(tuple(texts), input_type, dimensions, use_cache=use_cache),
        encoding,
        new,
    ),
    st.integers(0, len(MODELS) - 1),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    st.sampled_from([None, "query", "document"]),
    st.sampled_from([None, 1, 5, 16]),
    st.sampled_from(["float", "base64"]),
    st.sampled_from([True, True, True, False]),
    st.integers(0, 5).map(lambda n: n == 0),
)
Request = tuple[int, EmbedJob, Literal["float", "base64"], bool]


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with ValkeyProcess(tmp_path_factory.mktemp("valkey"), unix=True) as server:
        assert server.socket
        yield server.socket


@settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=st.lists(requests, max_size=25))
def test_a_result_equals_the_engines_bit_for_bit(socket: Path, sequence: list[Request]) -> None:
    asyncio.run(_run_all(socket, sequence))


async def _run_all(socket: Path, sequence: list[Request]) -> None:
    client: Any = connect(f"unix://{socket}", None, 5)
    store = RedisStore(
        client,
        prefix=b"test:",  # shared by all models, so that only the keys separate them
        timeout_s=5,
        ttl_s=None,
        write_queue_max_bytes=1 << 20,
        meter=Meter(),
    )
    store.start()
    try:
        await client.flushall()
        backends = [CachedBackend(model, store) for model in range(len(MODELS))]
        for model, job, encoding, restarted in sequence:
            if restarted:
                backends[model] = CachedBackend(model, store)
            expected = await _run(UncachedBackend(model), model, job)
            results = await asyncio.gather(*(_run(backends[model], model, job) for _ in range(2)))
            for result in results:
                _assert_same(result, expected, encoding)
            await store.flush(5)
    finally:
        await store.close()


async def _run(backend: UncachedBackend, model: int, job: EmbedJob) -> EmbedResult:
    return await EmbedService(SPECS[model], backend, IngressSettings()).run(job)


def _assert_same(a: EmbedResult, b: EmbedResult, encoding: Literal["float", "base64"]) -> None:
    assert a.vectors.tobytes() == b.vectors.tobytes()
    assert a.token_counts.tolist() == b.token_counts.tolist()
    assert a.truncated.tolist() == b.truncated.tolist()
    same_tiers = replace(a, tiers=b.tiers)
    encoder = VectorEncoder(SPECS[0], encoding)
    assert render(same_tiers, encoder=encoder) == render(b, encoder=encoder)
