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


def test_the_least_recently_used_goes_first() -> None:
    cache = filled(2, "ab")
    assert cache.get(b"a")
    cache.put(b"c", b"v" * 10)
    assert cache.get(b"b") is None
    assert cache.get(b"a")
    assert cache.stats().evictions == 1


def test_a_value_larger_than_the_bound_is_not_kept_and_drops_nothing() -> None:
    cache = filled(2, "ab")
    cache.put(b"x", b"v" * 10_000)
    assert cache.get(b"x") is None
    assert cache.stats().entries == 2


def test_a_smaller_bound_takes_effect_at_once() -> None:
    cache = filled(4, "abcd")
    cache.resize(2 * COST)
    assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [0, 0, 1, 1]


def test_no_bytes_means_no_cache() -> None:
    assert filled(0, "a").stats().entries == 0


def test_hits_and_misses_are_counted() -> None:
    cache = filled(1, "a")
    cache.get(b"a")
    cache.get(b"b")
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.bytes) == (1, 1, COST)


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=600)), max_size=60))
def test_it_stays_inside_its_bound(entries: list[tuple[bytes, bytes]]) -> None:
    cache = MemoryCache(5000)
    for key, value in entries:
        cache.put(key, value)
        assert cache.stats().bytes <= 5000
    held = {key: kept for key, _ in entries if (kept := cache.get(key)) is not None}
    assert cache.stats().bytes == sum(
        len(key) + len(kept) + ENTRY_OVERHEAD_BYTES for key, kept in held.items()
    )


def test_the_bound_counts_the_memory_it_really_takes() -> None:
    n = 20_000
    tracemalloc.start()
    cache = MemoryCache(1 << 30)
    for i in range(n):
        cache.put(i.to_bytes(32, "little"), bytes(1544))
    real, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.9 * real <= cache.stats().bytes <= 1.3 * real
