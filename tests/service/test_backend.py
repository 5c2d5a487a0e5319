import numpy as np
import pytest

from serve_app.cache.stack import CacheStack
from serve_app.metrics import Meter
from serve_app.service.backend import CachedBackend
from serve_app.types import CacheState, TextGroup, Tier
from tests.fakes import SPEC, FakeBackend, fake_send, fake_vector


@pytest.fixture
def engine() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def cache(engine: FakeBackend) -> CacheStack:
    send = fake_send(engine.run)
    return CacheStack(
        [SPEC], lambda space: send, l1_max_bytes=1 << 20, dtype="float32", meter=Meter()
    )


async def test_vectors_come_through_the_cache_and_the_rest_from_the_engine(
    cache: CacheStack, engine: FakeBackend
) -> None:
    lookup = cache.lookups[SPEC.space_id]
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
