"""What requests cost, in integers, so that sums are exact."""

from typing import NamedTuple

#: Nano-dollars in a US dollar: all amounts are whole numbers of nano-dollars.
NANO_USD = 10**9


class Cost(NamedTuple):
    """The cost of one request, in nano-dollars."""

    nano_usd: int = 0  #: of the tokens that were computed for it
    saved_nano_usd: int = 0  #: of the tokens that came from a cache or from another request


def token_cost(tokens: int, nano_usd_per_1k_tokens: int) -> int:
    """Returns the price of tokens in nano-dollars, rounded up."""
    return -(-tokens * nano_usd_per_1k_tokens // 1000)


def format_usd(nano_usd: int) -> str:
    """Returns an amount in US dollars with nine decimals, exactly."""
    return f"{nano_usd // NANO_USD}.{nano_usd % NANO_USD:09d}"
