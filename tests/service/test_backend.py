import asyncio
from dataclasses import replace

import numpy as np
import pytest

from serve_app.cache.coalescer import Send
from serve_app.cache.stack import CacheStack
from serve_app.meter import Meter
from serve_app.service.backend import CachedBackend
from serve_app.types import CacheState, Outputs, TextGroup, Tier
from tests.fakes import SPEC, FakeBackend, fake_send, fake_vector


@pytest.fixture
def engine() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def cache(engine: FakeBackend) -> CacheStack:
    send = fake_send(engine.run)
    return CacheStack(
        [SPEC], lambda engine_id: send, l1_max_bytes=1 << 20, dtype="float32", meter=Meter()
    )


async def test_vectors_come_through_the_cache_and_the_rest_from_the_engine(
    cache: CacheStack, engine: FakeBackend
) -> None:
    lookup = cache.lookups[SPEC.engine_id]
    backend = CachedBackend(lookup.run, engine, cache.cache_state)
    group = TextGroup(("a", "b"))
    results = [await backend.run(group) for _ in range(2)]
    assert [set(result.tiers.tolist()) for result in results] == [{Tier.COMPUTED}, {Tier.L1}]
    assert np.array_equal(results[1].values, [fake_vector("a"), fake_vector("b")])
    assert len(engine.groups) == 1
    assert (await backend.describe()).engine == "fake"
    assert (await backend.tokenize(("ab",), True))[0].tokens == ["[", "a", "b", "]"]
    assert await backend.decode(((97,),), True) == ["a"]
    tokens = await backend.run(TextGroup(("ab",), use_cache=False, task="embed_tokens"))
    assert len(tokens.values[0]) == 2
    assert await backend.cache_state() == CacheState("off")


async def test_models_of_one_space_share_cached_and_computing_texts_and_no_engine() -> None:
    specs = [SPEC, replace(SPEC, name="org/second", aliases=())]
    engines = {spec.engine_id: FakeBackend() for spec in specs}
    for engine in engines.values():
        engine.delay_s = 0.01
    cache = CacheStack(
        specs,
        lambda engine_id: fake_send(engines[engine_id].run),
        l1_max_bytes=1 << 20,
        dtype="float32",
        meter=Meter(),
    )
    first, second = (cache.lookups[spec.engine_id] for spec in specs)
    results = await asyncio.gather(first.run(TextGroup(("a",))), second.run(TextGroup(("a", "b"))))
    assert [result.tiers.tolist() for result in results] == [
        [Tier.COMPUTED],
        [Tier.JOINED, Tier.COMPUTED],
    ]
    texts = [[group.texts for group in engine.groups] for engine in engines.values()]
    assert texts == [[("a",)], [("b",)]]
    assert (await first.run(TextGroup(("b",)))).tiers.tolist() == [Tier.L1]


async def test_texts_for_providers_never_wait_for_calls_in_flight() -> None:
    specs = [
        SPEC,
        replace(SPEC, name="remote", aliases=(), space_id="cafe-fp32", provider="openai"),
    ]
    engine, released, started = FakeBackend(), asyncio.Event(), list[str]()

    def send(engine_id: str) -> Send:
        async def run(group: TextGroup) -> Outputs:
            started.append(engine_id)
            await released.wait()
            return await engine.run(group)

        return fake_send(run)

    cache = CacheStack(
        specs,
        send,
        l1_max_bytes=1 << 20,
        dtype="float32",
        meter=Meter(),
    )
    cache.limit_calls(1)
    runs = list[asyncio.Task[Outputs]]()
    for text in "abc":
        for spec in specs:
            runs.append(asyncio.create_task(cache.lookups[spec.engine_id].run(TextGroup((text,)))))
        for _ in range(10):  # turns of the loop, more than a call takes to start
            await asyncio.sleep(0)
    assert sorted(started) == sorted([specs[0].engine_id, *[specs[1].engine_id] * 3])
    released.set()
    await asyncio.gather(*runs)
