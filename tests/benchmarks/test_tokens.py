from benchmarks.tokens import count_tokens


def test_counts_each_request_with_the_special_tokens_of_each_text() -> None:
    assert count_tokens([["hello", "hello world"], [], ["hello"]]) == [3 + 4, 0, 3]


def test_what_the_model_cuts_is_not_counted() -> None:
    assert count_tokens([["hello " * 1000]]) == [256]
