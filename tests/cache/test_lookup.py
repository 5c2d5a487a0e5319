import numpy as np
import pytest

from serve_app.cache.key import cache_key
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import EngineFailed
from serve_app.types import TextGroup, Vectors
from tests.fakes import DIM, FakeLookup, fake_vector


class Computes:
    """What stands for the Embedder."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._fake = FakeLookup()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.asked.append(tuple(group.prompt + text for text in group.texts))
        if "fail" in group.texts:
            raise EngineFailed("no")
        return await self._fake.fetch(group)


@pytest.fixture
def computes() -> Computes:
    return Computes()


@pytest.fixture
def memory() -> MemoryCache:
    return MemoryCache(1 << 20)


@pytest.fixture
def lookup(memory: MemoryCache, computes: Computes) -> Lookup:
    return Lookup("space-fp32", DIM, memory, computes)


async def test_only_what_is_missing_is_computed(lookup: Lookup, computes: Computes) -> None:
    known = tuple(f"text {i}" for i in range(30))
    await lookup.fetch(TextGroup(known))
    mixed = (*known[:15], "new 1", *known[15:], "new 2")
    found = await lookup.fetch(TextGroup(mixed))
    assert computes.asked[1:] == [("new 1", "new 2")]
    assert found.computed == 2
    assert np.array_equal(found.values, np.stack([fake_vector(text) for text in mixed]))


async def test_a_hit_tells_the_same_as_a_miss(lookup: Lookup) -> None:
    group = TextGroup(("short", "x" * 99))
    miss, hit = await lookup.fetch(group), await lookup.fetch(group)
    assert (miss.computed, hit.computed) == (2, 0)
    assert hit.values.tobytes() == miss.values.tobytes()
    assert hit.tokens.tolist() == miss.tokens.tolist()
    assert hit.truncated.tolist() == miss.truncated.tolist() == [False, True]


async def test_prompts_do_not_meet(lookup: Lookup, computes: Computes) -> None:
    await lookup.fetch(TextGroup(("a",), prompt="query: "))
    await lookup.fetch(TextGroup(("a",)))
    assert computes.asked == [("query: a",), ("a",)]


async def test_without_the_cache_nothing_is_read_or_kept(
    lookup: Lookup, computes: Computes, memory: MemoryCache
) -> None:
    await lookup.fetch(TextGroup(("a",)))
    await lookup.fetch(TextGroup(("a", "b"), use_cache=False))
    assert computes.asked == [("a",), ("a", "b")]
    assert memory.stats().entries == 1


async def test_a_failure_is_not_kept(lookup: Lookup, memory: MemoryCache) -> None:
    with pytest.raises(EngineFailed):
        await lookup.fetch(TextGroup(("a", "fail")))
    assert memory.stats().entries == 0


async def test_a_torn_value_is_computed_anew_and_overwritten(
    lookup: Lookup, computes: Computes, memory: MemoryCache
) -> None:
    memory.put(cache_key("space-fp32", "", "a"), b"torn")
    assert (await lookup.fetch(TextGroup(("a",)))).computed == 1
    assert (await lookup.fetch(TextGroup(("a",)))).computed == 0
