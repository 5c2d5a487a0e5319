from hypothesis import given
from hypothesis import strategies as st

from serve_app.cache.key import cache_key

parts = st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))


@given(parts, parts)
def test_different_parts_never_meet(a: tuple[str, str, str], b: tuple[str, str, str]) -> None:
    assert (cache_key(*a) == cache_key(*b)) == (a == b)


def test_a_prompt_is_not_the_beginning_of_a_text() -> None:
    assert cache_key("s", "query: ", "a") != cache_key("s", "", "query: a")


def test_the_side_that_is_cut_counts() -> None:
    assert cache_key("s", "", "a", "right") != cache_key("s", "", "a", "left")
