import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest

from serve_app.cache.codec import Int8VectorCodec, VectorCodec, task_codecs
from serve_app.cache.lookup import Lookup
from serve_app.cache.memory import MemoryCache
from serve_app.errors import InferenceError
from serve_app.inputs import Input
from serve_app.meter import Meter
from serve_app.types import TextGroup, Tier, Vectors
from tests.fakes import DIM, SPEC, Embed, FakeBackend, as_vectors, coalesce, fake_vector

CODECS = task_codecs(SPEC)


class FakeNextTier:
    """The next tier, which records the texts that it computes."""

    def __init__(self) -> None:
        self.computed: list[tuple[Input, ...]] = []
        self._backend = FakeBackend()

    async def __call__(self, group: TextGroup) -> Vectors:
        self.computed.append(tuple(group.prompted_inputs))
        await asyncio.sleep(0)
        if "fail" in group.texts:
            raise InferenceError("no")
        return cast(Vectors, await self._backend.run(group))


class FakeStore:
    """An L2 store in a dict, which several lookups share."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.reads: list[int] = []
        self.models: list[str] = []  #: of each write
        self._held: list[Callable[[], None]] | None = None

    def hold(self) -> None:
        """Lets no read end until `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for end in held:
            end()

    def get_many(self, keys: Sequence[bytes]) -> asyncio.Future[list[bytes | None]]:
        self.reads.append(len(keys))
        loop = asyncio.get_running_loop()
        read: asyncio.Future[list[bytes | None]] = loop.create_future()

        def end() -> None:
            read.set_result([self.values.get(key) for key in keys])

        if self._held is None:
            loop.call_soon(end)
        else:
            self._held.append(end)
        return read

    def put(self, key: bytes, value: bytes, model: str) -> None:
        self.values[key] = value
        self.models.append(model)


@pytest.fixture
def next_tier() -> FakeNextTier:
    return FakeNextTier()


@pytest.fixture
def memory() -> MemoryCache:
    return MemoryCache(1 << 20)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def lookup(memory: MemoryCache, next_tier: FakeNextTier) -> Lookup:
    return Lookup("space-fp32", CODECS, memory, coalesce(next_tier))


def new_process(store: FakeStore, next_tier: Embed) -> Lookup:
    """Returns a lookup with an empty L1."""
    memory = MemoryCache(1 << 20)
    return Lookup("space-fp32", CODECS, memory, coalesce(next_tier), store=store)


async def test_only_missing_texts_are_computed(lookup: Lookup, next_tier: FakeNextTier) -> None:
    known = tuple(f"text {i}" for i in range(30))
    await lookup.run(TextGroup(known))
    mixed = (*known[:15], "new 1", *known[15:], "new 2")
    vectors = await lookup.run(TextGroup(mixed))
    assert next_tier.computed[1:] == [("new 1", "new 2")]
    assert vectors.computed_count == 2
    assert np.array_equal(vectors.values, np.stack([fake_vector(text) for text in mixed]))


async def test_a_hit_equals_a_miss(lookup: Lookup) -> None:
    group = TextGroup(("short", "x" * 99))
    miss, hit = await lookup.run(group), await lookup.run(group)
    assert (miss.computed_count, hit.computed_count) == (2, 0)
    assert as_vectors(hit).values.tobytes() == as_vectors(miss).values.tobytes()
    assert hit.token_counts.tolist() == miss.token_counts.tolist()
    assert hit.truncated.tolist() == miss.truncated.tolist() == [False, True]


async def test_prompts_have_separate_entries(lookup: Lookup, next_tier: FakeNextTier) -> None:
    await lookup.run(TextGroup(("a",), prompt="query: "))
    await lookup.run(TextGroup(("a",)))
    assert next_tier.computed == [("query: a",), ("a",)]


async def test_without_use_cache_nothing_is_read_or_written(
    lookup: Lookup, next_tier: FakeNextTier, memory: MemoryCache
) -> None:
    await lookup.run(TextGroup(("a",)))
    await lookup.run(TextGroup(("a", "b"), use_cache=False))
    assert next_tier.computed == [("a",), ("a", "b")]
    assert memory.stats().entries == 1


async def test_a_failure_is_not_cached(lookup: Lookup, memory: MemoryCache) -> None:
    with pytest.raises(InferenceError):
        await lookup.run(TextGroup(("a", "fail")))
    assert memory.stats().entries == 0


async def test_another_process_reads_from_l2(store: FakeStore, next_tier: FakeNextTier) -> None:
    first, second = new_process(store, next_tier), new_process(store, next_tier)
    miss = await first.run(TextGroup(("a", "x" * 99)))
    hit = await second.run(TextGroup(("x" * 99, "a", "b")))
    assert next_tier.computed == [("a", "x" * 99), ("b",)]
    assert hit.tiers.tolist() == [Tier.L2, Tier.L2, Tier.COMPUTED]
    assert as_vectors(hit).values[:2].tobytes() == as_vectors(miss).values[::-1].tobytes()
    assert hit.token_counts.tolist() == [16, 1, 1]
    assert hit.truncated.tolist() == [True, False, False]


async def test_a_value_of_l2_is_copied_into_l1(store: FakeStore, next_tier: FakeNextTier) -> None:
    await new_process(store, next_tier).run(TextGroup(("a",)))
    second = new_process(store, next_tier)
    tiers = [(await second.run(TextGroup(("a",)))).tiers.tolist() for _ in range(2)]
    assert tiers == [[Tier.L2], [Tier.L1]]
    assert store.reads == [1, 1]


async def test_a_corrupt_value_of_l2_is_overwritten(
    store: FakeStore, next_tier: FakeNextTier
) -> None:
    await new_process(store, next_tier).run(TextGroup(("a",)))
    (key,) = store.values
    value = store.values[key]
    store.values[key] = value[:-1]
    assert (await new_process(store, next_tier).run(TextGroup(("a",)))).computed_count == 1
    assert store.values[key] == value


async def test_only_computed_values_are_written_to_l2(
    store: FakeStore, next_tier: FakeNextTier
) -> None:
    next_lookup = new_process(store, next_tier)
    await next_lookup.run(TextGroup(("a",)))
    front = FakeStore()
    vectors = await new_process(front, next_lookup.run_encoded).run(TextGroup(("a", "b")))
    assert vectors.tiers.tolist() == [Tier.L1, Tier.COMPUTED]
    assert len(front.values) == 1


async def test_concurrent_requests_compute_a_text_once(
    lookup: Lookup, next_tier: FakeNextTier
) -> None:
    groups = [TextGroup(("a", f"{i}")) for i in range(50)]
    results = await asyncio.gather(*map(lookup.run, groups))
    assert sum(texts.count("a") for texts in next_tier.computed) == 1
    for i, vectors in enumerate(results):
        assert np.array_equal(vectors.values, np.stack([fake_vector("a"), fake_vector(f"{i}")]))


async def test_texts_that_are_joined_during_a_read_of_l2_are_read_and_computed_once(
    store: FakeStore, next_tier: FakeNextTier
) -> None:
    await new_process(store, next_tier).run(TextGroup(("stored",)))
    store.reads.clear()
    lookup = new_process(store, next_tier)
    store.hold()
    tasks = [asyncio.create_task(lookup.run(TextGroup(("stored", "new"))))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(lookup.run(TextGroup((text,)))) for text in ("new", "stored")]
    tasks += [asyncio.create_task(lookup.run(TextGroup(("other", "new", "stored"))))]
    await asyncio.sleep(0)
    assert store.reads == [2, 1]
    store.release()
    first, new, stored, mixed = await asyncio.gather(*tasks)
    assert sorted(next_tier.computed[1:]) == [("new",), ("other",)]
    assert first.tiers.tolist() == [Tier.L2, Tier.COMPUTED]
    assert (new.tiers.tolist(), stored.tiers.tolist()) == ([Tier.JOINED], [Tier.L2])
    assert np.array_equal(mixed.values, [fake_vector(text) for text in ("other", "new", "stored")])


async def test_a_request_that_leaves_during_a_read_of_l2_computes_nothing(
    store: FakeStore, next_tier: FakeNextTier
) -> None:
    lookup = new_process(store, next_tier)
    store.hold()
    task = asyncio.create_task(lookup.run(TextGroup(("a",))))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    store.release()
    await asyncio.sleep(0.01)
    assert next_tier.computed == []
    assert (await lookup.run(TextGroup(("a",)))).computed_count == 1


async def test_hits_and_misses_are_counted(store: FakeStore, next_tier: FakeNextTier) -> None:
    await new_process(store, next_tier).run(TextGroup(("a",)))
    meter = Meter()
    memory = MemoryCache(1 << 20)
    second = Lookup(
        "space-fp32", CODECS, memory, coalesce(next_tier), store=store, meter=meter.for_model("m")
    )
    await second.run(TextGroup(("a",)))
    await asyncio.gather(*(second.run(TextGroup(("a", "new"))) for _ in range(3)))
    counts = {(metric.name, *tags): n for (metric, tags), n in meter.drain().items()}
    assert counts == {
        ("embedserve_cache_hits", "l1", "m"): 3,
        ("embedserve_cache_hits", "l2", "m"): 1,
        ("embedserve_cache_misses", "m"): 3,
        ("embedserve_coalesced", "m"): 2,
    }
    assert store.models == ["", "m"]


async def test_texts_that_bypass_the_cache_are_not_counted(next_tier: FakeNextTier) -> None:
    meter = Meter()
    lookup = Lookup(
        "space", CODECS, MemoryCache(1 << 20), coalesce(next_tier), meter=meter.for_model("m")
    )
    await lookup.run(TextGroup(("a",), use_cache=False))
    assert not meter.drain()


@pytest.mark.parametrize(
    "codec",
    [
        VectorCodec(DIM, "float16"),
        Int8VectorCodec(np.array([[-1] * DIM, [1] * DIM], dtype=np.float32)),
    ],
    ids=["float16", "int8"],
)
async def test_rounded_vectors_have_the_same_bits_from_every_tier(
    store: FakeStore, next_tier: FakeNextTier, codec: VectorCodec
) -> None:
    def new() -> Lookup:
        memory = MemoryCache(1 << 20)
        return Lookup("space", {"embed": codec}, memory, coalesce(next_tier, codec), store=store)

    first = new()
    results = [
        await first.run(TextGroup(("a",))),
        await first.run(TextGroup(("a",))),
        await new().run(TextGroup(("a",))),
        await new().run(TextGroup(("a",), use_cache=False)),
    ]
    values = [as_vectors(result).values.tobytes() for result in results]
    assert len(set(values)) == 1
    assert values[0] != fake_vector("a").tobytes()
