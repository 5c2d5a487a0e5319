import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serve_app.cache.codec import Codec
from serve_app.cache.key import cache_key
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import InferenceError
from serve_app.metrics import Meter
from serve_app.types import Input, TextGroup, Tier, Vectors
from tests.fakes import DIM, FakeBackend, fake_vector


class Computes:
    """What stands for the Embedder."""

    def __init__(self) -> None:
        self.asked: list[tuple[Input, ...]] = []
        self._fake = FakeBackend()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.asked.append(tuple(group.prompted_inputs))
        await asyncio.sleep(0)
        if "fail" in group.texts:
            raise InferenceError("no")
        return await self._fake.embed(group)


class FakeStore:
    """The second tier, in a dict that processes share."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.reads: list[int] = []

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads.append(len(keys))
        await asyncio.sleep(0)
        return [self.values.get(key) for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value


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


def process(store: FakeStore, rest: Computes | Lookup) -> Lookup:
    """A lookup with an empty memory of its own, as a process has it."""
    fetch = rest.embed if isinstance(rest, Lookup) else rest
    return Lookup("space-fp32", Codec(DIM), MemoryCache(1 << 20), fetch, store=store)


async def test_only_what_is_missing_is_computed(lookup: Lookup, computes: Computes) -> None:
    known = tuple(f"text {i}" for i in range(30))
    await lookup.embed(TextGroup(known))
    mixed = (*known[:15], "new 1", *known[15:], "new 2")
    found = await lookup.embed(TextGroup(mixed))
    assert computes.asked[1:] == [("new 1", "new 2")]
    assert found.computed_count == 2
    assert np.array_equal(found.values, np.stack([fake_vector(text) for text in mixed]))


async def test_a_hit_tells_the_same_as_a_miss(lookup: Lookup) -> None:
    group = TextGroup(("short", "x" * 99))
    miss, hit = await lookup.embed(group), await lookup.embed(group)
    assert (miss.computed_count, hit.computed_count) == (2, 0)
    assert hit.values.tobytes() == miss.values.tobytes()
    assert hit.tokens.tolist() == miss.tokens.tolist()
    assert hit.truncated.tolist() == miss.truncated.tolist() == [False, True]


async def test_prompts_do_not_meet(lookup: Lookup, computes: Computes) -> None:
    await lookup.embed(TextGroup(("a",), prompt="query: "))
    await lookup.embed(TextGroup(("a",)))
    assert computes.asked == [("query: a",), ("a",)]


async def test_without_the_cache_nothing_is_read_or_kept(
    lookup: Lookup, computes: Computes, memory: MemoryCache
) -> None:
    await lookup.embed(TextGroup(("a",)))
    await lookup.embed(TextGroup(("a", "b"), use_cache=False))
    assert computes.asked == [("a",), ("a", "b")]
    assert memory.stats().entries == 1


async def test_a_failure_is_not_kept(lookup: Lookup, memory: MemoryCache) -> None:
    with pytest.raises(InferenceError):
        await lookup.embed(TextGroup(("a", "fail")))
    assert memory.stats().entries == 0


async def test_a_torn_value_is_computed_anew_and_overwritten(
    lookup: Lookup, computes: Computes, memory: MemoryCache
) -> None:
    memory.put(cache_key("space-fp32", "", "a"), b"torn")
    assert (await lookup.embed(TextGroup(("a",)))).computed_count == 1
    assert (await lookup.embed(TextGroup(("a",)))).computed_count == 0


async def test_another_process_finds_it_in_the_second_tier(
    store: FakeStore, computes: Computes
) -> None:
    first, second = process(store, computes), process(store, computes)
    miss = await first.embed(TextGroup(("a", "x" * 99)))
    hit = await second.embed(TextGroup(("x" * 99, "a", "b")))
    assert computes.asked == [("a", "x" * 99), ("b",)]
    assert hit.tiers.tolist() == [Tier.L2, Tier.L2, Tier.COMPUTED]
    assert hit.values[:2].tobytes() == miss.values[::-1].tobytes()
    assert hit.tokens.tolist() == [16, 1, 1]
    assert hit.truncated.tolist() == [True, False, False]


async def test_what_the_second_tier_had_is_then_in_memory(
    store: FakeStore, computes: Computes
) -> None:
    await process(store, computes).embed(TextGroup(("a",)))
    second = process(store, computes)
    tiers = [(await second.embed(TextGroup(("a",)))).tiers.tolist() for _ in range(2)]
    assert tiers == [[Tier.L2], [Tier.L1]]
    assert store.reads == [1, 1]


async def test_a_torn_value_of_the_second_tier_is_overwritten(
    store: FakeStore, computes: Computes
) -> None:
    await process(store, computes).embed(TextGroup(("a",)))
    (key,) = store.values
    whole = store.values[key]
    store.values[key] = whole[:-1]
    assert (await process(store, computes).embed(TextGroup(("a",)))).computed_count == 1
    assert store.values[key] == whole


async def test_what_came_from_another_tier_is_not_written_to_the_second_again(
    store: FakeStore, computes: Computes
) -> None:
    behind = process(store, computes)
    await behind.embed(TextGroup(("a",)))
    mine = FakeStore()
    found = await process(mine, behind).embed(TextGroup(("a", "b")))
    assert found.tiers.tolist() == [Tier.L1, Tier.COMPUTED]
    assert len(mine.values) == 1


async def test_requests_at_the_same_time_compute_a_text_once(
    lookup: Lookup, computes: Computes
) -> None:
    groups = [TextGroup(("a", f"{i}")) for i in range(50)]
    answers = await asyncio.gather(*map(lookup.embed, groups))
    assert sum(asked.count("a") for asked in computes.asked) == 1
    for i, found in enumerate(answers):
        assert np.array_equal(found.values, np.stack([fake_vector("a"), fake_vector(f"{i}")]))


async def test_hits_and_misses_are_counted(store: FakeStore, computes: Computes) -> None:
    await process(store, computes).embed(TextGroup(("a",)))
    meter = Meter()
    memory = MemoryCache(1 << 20)
    second = Lookup("space-fp32", Codec(DIM), memory, computes, store=store, meter=meter)
    await second.embed(TextGroup(("a",)))
    await asyncio.gather(*(second.embed(TextGroup(("a", "new"))) for _ in range(3)))
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
        await first.embed(TextGroup(("a",))),
        await first.embed(TextGroup(("a",))),
        await new().embed(TextGroup(("a",))),
        await new().embed(TextGroup(("a",), use_cache=False)),
    ]
    assert len({answer.values.tobytes() for answer in answers}) == 1
    assert answers[0].values.tobytes() != fake_vector("a").tobytes()
