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
    send = fake_send(engine.embed)
    return CacheStack(SPEC, send, l1_max_bytes=1 << 20, dtype="float32", meter=Meter())


async def test_vectors_come_through_the_cache_and_the_rest_from_the_engine(
    cache: CacheStack, engine: FakeBackend
) -> None:
    backend = CachedBackend(cache, engine)
    group = TextGroup(("a", "b"))
    results = [await backend.embed(group) for _ in range(2)]
    assert [set(result.tiers.tolist()) for result in results] == [{Tier.COMPUTED}, {Tier.L1}]
    assert np.array_equal(results[1].values, [fake_vector("a"), fake_vector("b")])
    assert len(engine.groups) == 1
    assert (await backend.describe()).engine == "fake"
    assert (await backend.tokenize(("ab",), True))[0].tokens == ["[", "a", "b", "]"]
    assert await backend.decode(((97,),), True) == ["a"]
    assert len((await backend.embed_tokens(TextGroup(("ab",))))[0].values) == 2


async def test_the_cache_state_is_that_of_this_process_or_of_another(
    cache: CacheStack, engine: FakeBackend
) -> None:
    assert await CachedBackend(cache, engine).cache_state() == CacheState("off")
    other = CachedBackend(cache, engine, engine.cache_state)
    assert await other.cache_state() == CacheState("up", kind="embedded")
