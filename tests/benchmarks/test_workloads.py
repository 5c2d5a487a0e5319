from itertools import islice

import pytest

from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_asks_the_same_and_another_something_else(name: str) -> None:
    first, again, other = (list(islice(WORKLOADS[name].requests(seed), 5)) for seed in (1, 1, 2))
    assert first == again != other


def test_the_sizes_are_what_the_descriptions_say() -> None:
    sizes = {
        name: {
            (len(texts), len(text.split()))
            for texts in islice(workload.requests(0), 200)
            for text in texts
        }
        for name, workload in WORKLOADS.items()
    }
    assert {n for n, _ in sizes["query"]} == {1}
    assert {words for _, words in sizes["query"]} == set(range(5, 13))
    assert {n for n, _ in sizes["document"]} == {32}
    assert {words for _, words in sizes["document"]} == set(range(5, 61))
    assert {n for n, _ in sizes["mixed"]} == {1, 32}
    assert {n for n, _ in sizes["long"]} == {4}
    assert min(words for _, words in sizes["long"]) >= 150


def test_only_zipf_repeats_itself() -> None:
    for name, workload in WORKLOADS.items():
        texts = [text for request in islice(workload.requests(0), 2000) for text in request]
        repeated = 1 - len(set(texts)) / len(texts)
        assert (repeated > 0.3) == (name == "zipf"), name
