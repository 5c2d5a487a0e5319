import pytest

from benchmarks.capacity import bisect


@pytest.mark.parametrize("limit", [3.0, 19.0, 21.0, 777.0, 12_345.0])
def test_finds_the_highest_rate_from_above_and_below(limit: float) -> None:
    tried: list[float] = []

    def keeps(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = bisect(keeps, first=20)
    assert found <= limit <= found * 1.05
    assert len(tried) <= 20


def test_a_server_that_keeps_it_at_no_rate_is_given_up() -> None:
    assert bisect(lambda rate: False, first=20) == 0
