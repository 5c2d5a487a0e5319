from benchmarks.tokens import count_tokens


def test_requests_are_counted_with_the_special_tokens_of_each_text() -> None:
    assert count_tokens([["hello", "hello world"], [], ["hello"]]) == [3 + 4, 0, 3]


def test_truncated_tokens_are_not_counted() -> None:
    assert count_tokens([["hello " * 1000]]) == [256]
