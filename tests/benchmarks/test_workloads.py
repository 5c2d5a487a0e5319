from itertools import chain, islice

import numpy as np
import pytest

from benchmarks.workloads import WORKLOADS, batch_workload, repeat_workload


@pytest.mark.parametrize("name", WORKLOADS)
def test_equal_seeds_give_equal_requests(name: str) -> None:
    first, again, other = (list(islice(WORKLOADS[name].requests(seed), 5)) for seed in (1, 1, 2))
    assert first == again != other


def test_requests_have_the_sizes_of_the_descriptions() -> None:
    sizes = {
        name: {
            (len(texts), len(text.split()))
            for texts in islice(workload.requests(0), 200)
            for text in texts
        }
        for name, workload in WORKLOADS.items()
        if name != "largest"  # takes seconds
    }
    assert {n for n, _ in sizes["query"]} == {1}
    assert {words for _, words in sizes["query"]} == set(range(5, 13))
    assert {n for n, _ in sizes["document"]} == {32}
    assert {words for _, words in sizes["document"]} == set(range(5, 61))
    assert {n for n, _ in sizes["mixed"]} == {1, 32}
    assert {n for n, _ in sizes["long"]} == {4}
    assert min(words for _, words in sizes["long"]) >= 150


def test_the_average_of_a_load_shape_is_the_requested_rate() -> None:
    moments = np.linspace(0, 1, 10_000, endpoint=False)
    shapes = [w.shape for w in WORKLOADS.values() if w.shape is not None]
    assert len(shapes) == 2
    for shape in shapes:
        factors = np.array([shape.rate_factor(moment) for moment in moments])
        assert factors.mean() == pytest.approx(1, abs=0.001)
        assert 0 <= factors.min() < factors.max() <= shape.peak_factor


def test_a_batch_workload_has_its_size() -> None:
    for texts in islice(batch_workload(16, 8, 8).requests(0), 10):
        assert [len(text.split()) for text in texts] == [8] * 16


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_a_share_of_a_repeat_workload_repeats_for_every_seed(share: float) -> None:
    repeated = {text for texts in islice(repeat_workload(1.0).requests(0), 1000) for text in texts}
    assert len(repeated) == 64
    queries = [text for texts in islice(repeat_workload(share).requests(1), 1000) for text in texts]
    measured = sum(query in repeated for query in queries) / len(queries)
    assert measured == pytest.approx(share, abs=0.05)


def test_texts_repeat_in_zipf_only() -> None:
    for name, workload in WORKLOADS.items():
        texts = list(islice(chain.from_iterable(workload.requests(0)), 2000))
        repeated = 1 - len(set(texts)) / len(texts)
        assert (repeated > 0.3) == (name == "zipf"), name
