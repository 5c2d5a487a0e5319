from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.key import cache_key

parts = st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))

ids = st.lists(st.integers(0, 2**20), min_size=1, max_size=8).map(tuple)


@given(parts, parts)
def test_different_parts_have_different_keys(
    a: tuple[str, str, str], b: tuple[str, str, str]
) -> None:
    assert (cache_key(*a) == cache_key(*b)) == (a == b)


def test_a_prompt_differs_from_the_start_of_a_text() -> None:
    assert cache_key("s", "query: ", "a") != cache_key("s", "", "query: a")


@given(ids, ids)
def test_different_token_ids_have_different_keys(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert (cache_key("s", "", a) == cache_key("s", "", b)) == (a == b)


@given(ids)
def test_token_ids_differ_from_texts(a: tuple[int, ...]) -> None:
    packed = b"".join(token.to_bytes(8, "little") for token in a)
    assert cache_key("s", "", a) != cache_key("s", "", packed.decode("latin-1"))
    assert cache_key("s", "query: ", a) == cache_key("s", "", a)
