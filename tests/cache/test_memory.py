import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.eviction.base import ENTRY_OVERHEAD_BYTES
from serve_app.cache.memory import MemoryCache
from serve_app.config.deployments import EvictionName

COST = 1 + 10 + ENTRY_OVERHEAD_BYTES  # a key of one byte, a value of ten

POLICIES: tuple[EvictionName, ...] = get_args(EvictionName)
every_policy = pytest.mark.parametrize("eviction", POLICIES)


def filled(max_entries: int, keys: str, eviction: EvictionName = "s3-fifo") -> MemoryCache:
    cache = MemoryCache(max_entries * COST, eviction)
    for key in keys:
        cache.put(key.encode(), b"v" * 10)
    return cache


def cached(cache: MemoryCache, keys: str) -> str:
    return "".join(key for key in keys if cache.get(key.encode()) is not None)


def test_values_read_twice_outlive_others() -> None:
    cache = filled(4, "abcd")
    for key in "aabb":
        cache.get(key.encode())
    for key in "efghijklmn":
        cache.put(key.encode(), b"v" * 10)
    assert cached(cache, "abcd") == "ab"
    assert cache.stats().entries == 4
    assert cache.stats().evictions == 10


def test_a_value_written_again_outlives_new_ones() -> None:
    cache = filled(4, "abcde")  # evicts a
    assert cached(cache, "a") == ""
    cache.put(b"a", b"v" * 10)
    for key in b"fghijk":
        cache.put(bytes([key]), b"v" * 10)
    assert cached(cache, "a") == "a"


def test_values_no_longer_read_are_evicted() -> None:
    cache = filled(4, "ab")
    for key in b"aabb":
        cache.get(bytes([key]))
    for key in range(200, 240):
        cache.put(bytes([key]), b"v" * 10)
        cache.get(bytes([key]))
        cache.get(bytes([key]))
    assert cached(cache, "ab") == ""


def test_a_stream_of_distinct_keys_does_not_evict_values_in_use() -> None:
    cache = filled(100, "")
    hot = [i.to_bytes(1, "little") for i in range(80)]
    for _ in range(4):
        for key in hot:
            if cache.get(key) is None:
                cache.put(key, b"v" * 10)
    for i in range(10_000):
        cache.put(b"new %d" % i, b"v" * 10)
    assert sum(cache.get(key) is not None for key in hot) > 70


@every_policy
def test_a_value_can_be_overwritten(eviction: EvictionName) -> None:
    cache = filled(2, "aab", eviction)
    cache.put(b"a", b"w" * 10)
    assert cache.get(b"a") == b"w" * 10
    assert cache.stats().bytes == 2 * COST


@every_policy
def test_clear_removes_everything(eviction: EvictionName) -> None:
    cache = filled(4, "abcd", eviction)
    assert cache.clear() == 4
    assert cached(cache, "abcd") == ""
    assert cache.stats().bytes == 0


@every_policy
def test_a_value_larger_than_the_limit_is_not_cached_and_evicts_nothing_else(
    eviction: EvictionName,
) -> None:
    cache = filled(2, "ab", eviction)
    cache.put(b"x", b"v" * 10_000)
    cache.put(b"a", b"v" * 10_000)
    assert cached(cache, "abx") == "b"


@every_policy
def test_a_smaller_limit_takes_effect_at_once(eviction: EvictionName) -> None:
    cache = filled(4, "abcd", eviction)
    cache.apply(2 * COST, eviction)
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [0, 0, 1, 1]


@every_policy
def test_a_limit_of_zero_disables_the_cache(eviction: EvictionName) -> None:
    assert filled(0, "a", eviction).stats().entries == 0


@every_policy
def test_hits_and_misses_are_counted(eviction: EvictionName) -> None:
    cache = filled(1, "a", eviction)
    cache.get(b"a")
    cache.get(b"b")
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.bytes) == (1, 1, COST)


@given(
    st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=600)), max_size=60),
    st.sampled_from(POLICIES),
)
def test_it_stays_below_its_limit(
    entries: list[tuple[bytes, bytes]], eviction: EvictionName
) -> None:
    cache = MemoryCache(5000, eviction)
    for key, value in entries:
        cache.put(key, value)
        assert cache.stats().bytes <= 5000
        cache.get(key[:1])
    remaining = {key: cached for key, _ in entries if (cached := cache.get(key)) is not None}
    assert all(dict(entries)[key] == value for key, value in remaining.items())
    assert cache.stats().bytes == sum(
        len(key) + len(value) + ENTRY_OVERHEAD_BYTES for key, value in remaining.items()
    )


@every_policy
def test_the_counted_bytes_match_the_allocated_memory(eviction: EvictionName) -> None:
    tracemalloc.start()
    cache = MemoryCache(4_000_000, eviction)
    for i in range(20_000):
        cache.put(i.to_bytes(32, "little"), bytes(1552))
        cache.get(max(0, i - 500).to_bytes(32, "little"))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.stats().evictions > 15_000
    assert 0.95 * allocated <= cache.stats().bytes <= 1.3 * allocated


def test_lru_evicts_what_was_not_used_for_the_longest_time() -> None:
    cache = filled(3, "abc", "lru")
    cache.get(b"a")
    cache.put(b"b", b"w" * 10)
    cache.put(b"d", b"v" * 10)
    assert cached(cache, "abcd") == "abd"


def test_lfu_evicts_what_was_read_least_often_and_of_these_the_oldest() -> None:
    cache = filled(4, "abcd", "lfu")
    for key in "aaabc":
        cache.get(key.encode())
    for key in "ef":
        cache.put(key.encode(), b"v" * 10)
    assert cached(cache, "abcdef") == "abcf"
    assert cached(filled(2, "abcd", "lfu"), "abcd") == "cd"


def test_a_value_overwritten_under_lfu_keeps_its_reads() -> None:
    cache = filled(2, "ab", "lfu")
    cache.get(b"a")
    for key in b"acd":
        cache.put(bytes([key]), b"w" * 10)
    assert cached(cache, "abcd") == "ad"


@every_policy
def test_another_policy_takes_over_the_values(eviction: EvictionName) -> None:
    for previous in POLICIES:
        cache = filled(4, "abcd", previous)
        cache.apply(4 * COST, eviction)
        assert cached(cache, "abcd") == "abcd"
        cache.apply(2 * COST, eviction)
        assert (cache.stats().entries, cache.stats().bytes) == (2, 2 * COST)


def hit_rate(eviction: EvictionName, *, scans: bool = False, changes: bool = False) -> float:
    """Returns the hit rate of 30,000 queries of a Zipf distribution over 20,000 texts.

    The cache holds 500 texts.

    Args:
        eviction: the policy.
        scans: whether after each 1,000 queries 1,000 texts that occur once are embedded, as when
            a corpus is indexed.
        changes: whether other texts become popular after each 10,000 queries.
    """
    rng = np.random.default_rng(19)
    weights = 1 / np.arange(1, 20_001)
    queries = rng.choice(20_000, 30_000, p=weights / weights.sum())
    cache = filled(500, "", eviction)
    for i, query in enumerate(queries.tolist()):
        key = b"%d %d" % (query, i // 10_000 if changes else 0)
        if cache.get(key) is None:
            cache.put(key, b"v" * 10)
        if scans and i % 1000 == 999:
            for text in range(1000):
                cache.put(b"corpus %d %d" % (i, text), b"v" * 10)
    return cache.stats().hits / len(queries)


def test_the_default_policy_hits_more_than_lru_and_forgets_unlike_lfu() -> None:
    assert hit_rate("s3-fifo") > hit_rate("lru") + 0.05
    assert hit_rate("s3-fifo", scans=True) > hit_rate("lru", scans=True) + 0.08
    assert hit_rate("s3-fifo", changes=True) > hit_rate("lfu", changes=True) + 0.05
