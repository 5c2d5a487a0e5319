from hypothesis import given
from hypothesis import strategies as st

from serve_app.providers.token_counts import distribute_tokens, estimate_tokens, least_tokens

TEXTS = st.lists(st.text(max_size=50), min_size=1, max_size=30)


@given(st.integers(0, 10**6), TEXTS)
def test_the_sum_is_exact_and_each_share_in_proportion(total: int, texts: list[str]) -> None:
    counts = distribute_tokens(total, texts)
    lengths = [len(text.encode("utf-8", "surrogatepass")) or 1 for text in texts]
    assert sum(counts) == total
    for count, length in zip(counts, lengths, strict=True):
        assert abs(count - total * length / sum(lengths)) < 1


@given(st.integers(0, 1000), st.lists(st.text(max_size=9), min_size=2, max_size=9))
def test_equal_texts_differ_by_at_most_one_token(total: int, texts: list[str]) -> None:
    counts = distribute_tokens(total, [*texts, *texts])
    pairs = zip(counts, counts[len(texts) :], strict=False)
    assert all(abs(first - second) <= 1 for first, second in pairs)


@given(st.text())
def test_an_estimate_is_above_what_a_text_has_for_certain(text: str) -> None:
    assert least_tokens(text) < estimate_tokens(text) <= len(text.encode()) + 1
