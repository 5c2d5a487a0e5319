from itertools import islice

import numpy as np
import pytest

from benchmarks.workloads import WORKLOADS, repeating, sized


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


def test_a_shape_is_the_rate_that_was_asked_on_average() -> None:
    moments = np.linspace(0, 1, 10_000, endpoint=False)
    shapes = [w.shape for w in WORKLOADS.values() if w.shape is not None]
    assert len(shapes) == 2
    for shape in shapes:
        factors = np.array([shape.at(moment) for moment in moments])
        assert factors.mean() == pytest.approx(1, abs=0.001)
        assert 0 <= factors.min() < factors.max() <= shape.peak


def test_a_size_that_was_asked_for() -> None:
    for texts in islice(sized(16, 8, 8).requests(0), 10):
        assert [len(text.split()) for text in texts] == [8] * 16


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_a_share_was_asked_before_whatever_the_seed(share: float) -> None:
    before = {text for texts in islice(repeating(1.0).requests(0), 1000) for text in texts}
    assert len(before) == 64
    queries = [text for texts in islice(repeating(share).requests(1), 1000) for text in texts]
    known = sum(query in before for query in queries) / len(queries)
    assert known == pytest.approx(share, abs=0.05)


def test_only_zipf_repeats_itself() -> None:
    for name, workload in WORKLOADS.items():
        texts = [text for request in islice(workload.requests(0), 2000) for text in request]
        repeated = 1 - len(set(texts)) / len(texts)
        assert (repeated > 0.3) == (name == "zipf"), name
