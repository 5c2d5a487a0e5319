import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.memory import ENTRY_OVERHEAD_BYTES, MemoryCache

COST = 1 + 10 + ENTRY_OVERHEAD_BYTES  # a key of one byte, a value of ten


def filled(max_entries: int, keys: str) -> MemoryCache:
    cache = MemoryCache(max_entries * COST)
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


def test_a_value_can_be_overwritten() -> None:
    cache = filled(2, "aab")
    cache.put(b"a", b"w" * 10)
    assert cache.get(b"a") == b"w" * 10
    assert cache.stats().bytes == 2 * COST


def test_clear_removes_everything() -> None:
    cache = filled(4, "abcd")
    assert cache.clear() == 4
    assert cached(cache, "abcd") == ""
    assert cache.stats().bytes == 0


def test_a_value_larger_than_the_limit_is_not_cached_and_evicts_nothing_else() -> None:
    cache = filled(2, "ab")
    cache.put(b"x", b"v" * 10_000)
    cache.put(b"a", b"v" * 10_000)
    assert cached(cache, "abx") == "b"


def test_a_smaller_limit_takes_effect_at_once() -> None:
    cache = filled(4, "abcd")
    cache.resize(2 * COST)
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [0, 0, 1, 1]


def test_a_limit_of_zero_disables_the_cache() -> None:
    assert filled(0, "a").stats().entries == 0


def test_hits_and_misses_are_counted() -> None:
    cache = filled(1, "a")
    cache.get(b"a")
    cache.get(b"b")
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.bytes) == (1, 1, COST)


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=600)), max_size=60))
def test_it_stays_below_its_limit(entries: list[tuple[bytes, bytes]]) -> None:
    cache = MemoryCache(5000)
    for key, value in entries:
        cache.put(key, value)
        assert cache.stats().bytes <= 5000
        cache.get(key[:1])
    remaining = {key: cached for key, _ in entries if (cached := cache.get(key)) is not None}
    assert all(dict(entries)[key] == value for key, value in remaining.items())
    assert cache.stats().bytes == sum(
        len(key) + len(value) + ENTRY_OVERHEAD_BYTES for key, value in remaining.items()
    )


def test_the_counted_bytes_match_the_allocated_memory() -> None:
    tracemalloc.start()
    cache = MemoryCache(4_000_000)
    for i in range(20_000):
        cache.put(i.to_bytes(32, "little"), bytes(1552))
        cache.get(max(0, i - 500).to_bytes(32, "little"))
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.stats().evictions > 15_000
    assert 0.95 * allocated <= cache.stats().bytes <= 1.3 * allocated
