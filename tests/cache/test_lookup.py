import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.cache.key import cache_key
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.cache.codec import Codec
from serve_app.errors import EngineFailed
from serve_app.metrics import Meter
from serve_app.types import Input, TextGroup, Tier, Vectors
from tests.fakes import DIM, FakeLookup, fake_vector


class Computes:
    """What stands for the Embedder."""

    def __init__(self) -> None:
        self.asked: list[tuple[Input, ...]] = []
        self._fake = FakeLookup()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.asked.append(tuple(group.prompted))
        await asyncio.sleep(0)
        if "fail" in group.texts:
            raise EngineFailed("no")
        return await self._fake.fetch(group)


class FakeStore:
    """The second tier, in a dict that processes share."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.claims: set[bytes] = set()
        self.reads: list[int] = []

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads.append(len(keys))
        await asyncio.sleep(0)
        return [self.values.get(key) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    async def claim(self, keys: Sequence[bytes], lease_s: float) -> list[bool]:
        claimed = [key not in self.claims for key in keys]
        self.claims.update(keys)
        return claimed


@pytest.fixture
def computes() -> Computes:
    return Computes()


@pytest.fixture
def memory() -> MemoryCache:
    return MemoryCache(1 << 20)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def lookup(memory: MemoryCache, computes: Computes) -> Lookup:
    return Lookup("space-fp32", Codec(DIM), memory, computes)


def process(store: FakeStore, rest: Computes | Lookup, lease_s: float = 0.0) -> Lookup:
    """A lookup with an empty memory of its own, as a process has it."""
    fetch = rest.fetch if isinstance(rest, Lookup) else rest
    return Lookup(
        "space-fp32", Codec(DIM), MemoryCache(1 << 20), fetch, store=store, lease_s=lease_s
    )


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


async def test_another_process_finds_it_in_the_second_tier(
    store: FakeStore, computes: Computes
) -> None:
    first, second = process(store, computes), process(store, computes)
    miss = await first.fetch(TextGroup(("a", "x" * 99)))
    hit = await second.fetch(TextGroup(("x" * 99, "a", "b")))
    assert computes.asked == [("a", "x" * 99), ("b",)]
    assert hit.tiers.tolist() == [Tier.L2, Tier.L2, Tier.COMPUTED]
    assert hit.values[:2].tobytes() == miss.values[::-1].tobytes()
    assert hit.tokens.tolist() == [16, 1, 1]
    assert hit.truncated.tolist() == [True, False, False]


async def test_what_the_second_tier_had_is_then_in_memory(
    store: FakeStore, computes: Computes
) -> None:
    await process(store, computes).fetch(TextGroup(("a",)))
    second = process(store, computes)
    tiers = [(await second.fetch(TextGroup(("a",)))).tiers.tolist() for _ in range(2)]
    assert tiers == [[Tier.L2], [Tier.L1]]
    assert store.reads == [1, 1]


async def test_a_torn_value_of_the_second_tier_is_overwritten(
    store: FakeStore, computes: Computes
) -> None:
    await process(store, computes).fetch(TextGroup(("a",)))
    (key,) = store.values
    whole = store.values[key]
    store.values[key] = whole[:-1]
    assert (await process(store, computes).fetch(TextGroup(("a",)))).computed == 1
    assert store.values[key] == whole


async def test_what_came_from_another_tier_is_not_written_to_the_second_again(
    store: FakeStore, computes: Computes
) -> None:
    behind = process(store, computes)
    await behind.fetch(TextGroup(("a",)))
    mine = FakeStore()
    found = await process(mine, behind).fetch(TextGroup(("a", "b")))
    assert found.tiers.tolist() == [Tier.L1, Tier.COMPUTED]
    assert len(mine.values) == 1


async def test_requests_at_the_same_time_compute_a_text_once(
    lookup: Lookup, computes: Computes
) -> None:
    groups = [TextGroup(("a", f"{i}")) for i in range(50)]
    answers = await asyncio.gather(*map(lookup.fetch, groups))
    assert sum(asked.count("a") for asked in computes.asked) == 1
    for i, found in enumerate(answers):
        assert np.array_equal(found.values, np.stack([fake_vector("a"), fake_vector(f"{i}")]))


async def test_hits_and_misses_are_counted(store: FakeStore, computes: Computes) -> None:
    await process(store, computes).fetch(TextGroup(("a",)))
    meter = Meter()
    memory = MemoryCache(1 << 20)
    second = Lookup("space-fp32", Codec(DIM), memory, computes, store=store, meter=meter)
    await second.fetch(TextGroup(("a",)))
    await asyncio.gather(*(second.fetch(TextGroup(("a", "new"))) for _ in range(3)))
    counted = {(metric.name, *tags): n for (metric, tags), n in meter.drain().items()}
    assert counted == {
        ("embedserve_cache_hits", "l1"): 3,
        ("embedserve_cache_hits", "l2"): 1,
        ("embedserve_cache_misses",): 3,
        ("embedserve_coalesced",): 2,
    }


async def test_half_precision_gives_the_same_bits_however_it_is_asked(
    store: FakeStore, computes: Computes
) -> None:
    def new() -> Lookup:
        codec = Codec(DIM, "float16")
        return Lookup("space", codec, MemoryCache(1 << 20), computes, store=store)

    first = new()
    answers = [
        await first.fetch(TextGroup(("a",))),
        await first.fetch(TextGroup(("a",))),
        await new().fetch(TextGroup(("a",))),
        await new().fetch(TextGroup(("a",), use_cache=False)),
    ]
    assert len({answer.values.tobytes() for answer in answers}) == 1
    assert answers[0].values.tobytes() != fake_vector("a").tobytes()


async def test_with_leases_processes_compute_a_text_once(
    store: FakeStore, computes: Computes
) -> None:
    both = [process(store, computes, lease_s=5) for _ in range(2)]
    found = await asyncio.gather(*(p.fetch(TextGroup(("a", "b", "c"))) for p in both))
    assert computes.asked == [("a", "b", "c")]
    assert found[0].values.tobytes() == found[1].values.tobytes()
    assert sorted(v.computed for v in found) == [0, 3]


async def test_a_lease_whose_holder_has_died_delays_only(
    store: FakeStore, computes: Computes
) -> None:
    store.claims.update(cache_key("space-fp32", "", text) for text in "ab")
    found = await process(store, computes, lease_s=0.1).fetch(TextGroup(("a", "c", "b")))
    assert computes.asked == [("c",), ("a", "b")]
    assert np.array_equal(found.values, np.stack([fake_vector(text) for text in "acb"]))


async def test_with_leases_a_failure_is_not_waited_for(
    store: FakeStore, computes: Computes
) -> None:
    store.claims.add(cache_key("space-fp32", "", "a"))
    with pytest.raises(EngineFailed):
        await process(store, computes, lease_s=60).fetch(TextGroup(("a", "fail")))
    reads = len(store.reads)
    await asyncio.sleep(0.1)
    assert len(store.reads) == reads
