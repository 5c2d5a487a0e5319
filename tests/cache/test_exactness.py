"""However a text was asked for before, and whatever tier it comes from: the answer is the same."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.cache.codec import Codec
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.redis_store import RedisStore
from serve_app.config import IngressSettings, ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.metrics import Meter
from serve_app.models import resolve
from serve_app.service.embed import EmbedService
from serve_app.types import (
    NO_TIMINGS,
    CacheState,
    EmbedJob,
    EmbedResult,
    EngineInfo,
    TextGroup,
    Tier,
    VectorRow,
    Vectors,
)
from serve_app.valkey.client import connect
from serve_app.web.dialects.openai import render
from serve_app.web.schema.vector_encoding import VectorEncoder
from tests.fakes import FakeBackend
from tests.valkey_server import ValkeyProcess

#: Two widths, two limits; and with the last, one family at two limits.
MODELS = [("hashing:16", 4), ("hashing:64", 4), ("hashing:64", 6)]
WORDS = ["one", "two", "three", "four five six seven eight", "query: one", "ONE", "one "]
SPECS = [
    replace(
        resolve(ModelConfig(name="words", source=source, max_tokens=limit)),
        prompts={"query": "query: ", "document": ""},
    )
    for source, limit in MODELS
]
#: Room for three small values, so that some come from each tier.
SMALL = 1500


class Engine(FakeBackend):
    """The tier behind all: computes everything."""

    def __init__(self, model: int) -> None:
        super().__init__()
        self._engine = HashingEngine(SPECS[model])

    async def embed(self, group: TextGroup) -> Vectors:
        tokens = self._engine.tokenizer.encode(list(map(str, group.prompted_inputs)))
        await asyncio.sleep(0)
        rows = zip(self._engine.embed(tokens), tokens, strict=True)
        return Vectors.from_rows(
            [VectorRow(vector, len(t.ids), t.truncated, Tier.COMPUTED) for vector, t in rows],
            NO_TIMINGS,
        )

    async def describe(self) -> EngineInfo:
        return self._engine.info

    async def cache_state(self) -> CacheState:
        return CacheState("off")


class Tiered(Engine):
    """The same behind an Ingress' memory, CacheLookup's memory and the shared server."""

    def __init__(self, model: int, store: RedisStore) -> None:
        super().__init__(model)
        spec, codec = SPECS[model], Codec(SPECS[model].dim)
        behind = Lookup(spec.space_id, codec, MemoryCache(SMALL), super().embed, store=store)
        self._front = Lookup(spec.space_id, codec, MemoryCache(SMALL), behind.embed)

    async def embed(self, group: TextGroup) -> Vectors:
        return await self._front.embed(group)


requests = st.builds(
    lambda model, texts, input_type, dimensions, encoding, use_cache, new: (
        model,
        EmbedJob(tuple(texts), None, input_type, dimensions, use_cache=use_cache),
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
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sequence=st.lists(requests, max_size=25))
def test_an_answer_is_that_of_the_engine_bit_for_bit(socket: Path, sequence: list[Request]) -> None:
    asyncio.run(_ask_all(socket, sequence))


async def _ask_all(socket: Path, sequence: list[Request]) -> None:
    client: Any = connect(f"unix://{socket}", None, 5)
    store = RedisStore(
        client,
        prefix=b"test:",  # of all models, so that nothing but the keys keeps them apart
        timeout_s=5,
        ttl_s=None,
        write_queue_max_bytes=1 << 20,
        meter=Meter(),
    )
    store.start()
    try:
        await client.flushall()
        tiered = [Tiered(model, store) for model in range(len(MODELS))]
        for model, job, encoding, restarted in sequence:
            if restarted:
                tiered[model] = Tiered(model, store)
            expected = await _ask(Engine(model), model, job)
            both = await asyncio.gather(*(_ask(tiered[model], model, job) for _ in range(2)))
            for answer in both:
                _same(answer, expected, encoding)
            await store.flush(5)
    finally:
        await store.close()


async def _ask(tier: Engine, model: int, job: EmbedJob) -> EmbedResult:
    return await EmbedService(SPECS[model], tier, IngressSettings()).embed(job)


def _same(a: EmbedResult, b: EmbedResult, encoding: Literal["float", "base64"]) -> None:
    assert a.vectors.tobytes() == b.vectors.tobytes()
    assert a.tokens.tolist() == b.tokens.tolist()
    assert a.truncated.tolist() == b.truncated.tolist()
    uncounted = replace(a, tiers=b.tiers)
    encoder = VectorEncoder(SPECS[0], encoding)
    assert render(uncounted, encoder=encoder) == render(b, encoder=encoder)
