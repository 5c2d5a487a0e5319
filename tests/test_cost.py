from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.cost import Cost, as_usd, format_usd, request_cost, token_cost

amounts = st.integers(0, 10**15)
prices = st.integers(0, 10**12)


@given(amounts, prices)
def test_a_price_is_rounded_up_to_a_whole_number(tokens: int, price: int) -> None:
    exact = Fraction(tokens * price, 1000)
    assert 0 <= token_cost(tokens, price) - exact < 1


@given(amounts)
def test_an_amount_is_printed_exactly(nano_usd: int) -> None:
    printed = format_usd(nano_usd)
    assert Fraction(printed) == Fraction(nano_usd, 10**9)
    assert len(printed.partition(".")[2]) == 9
    assert as_usd(nano_usd) == float(printed)


@pytest.mark.parametrize(
    ("total", "computed", "price", "cost"),
    [
        (10, 10, 20_000, Cost(200, 0, 1, 10)),
        (10, 0, 20_000, Cost(0, 200, 1, 0)),
        (3, 1, 1, Cost(1, 1, 1, 1)),
        (2001, 1001, 1, Cost(2, 1, 1, 1001)),
    ],
)
def test_cost_and_savings_are_rounded_once_each(
    total: int, computed: int, price: int, cost: Cost
) -> None:
    assert request_cost(total, 1, computed, price) == cost
