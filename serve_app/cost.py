"""What requests cost, in integers, so that sums are exact."""

from typing import NamedTuple

#: Nano-dollars in a US dollar: all amounts are whole numbers of nano-dollars.
NANO_USD = 10**9


class Cost(NamedTuple):
    """What one request was charged for, and the amounts, in nano-dollars."""

    nano_usd: int = 0  #: of the tokens that were computed for it
    saved_nano_usd: int = 0  #: of its other tokens: cached, or computed for an equal text
    computed_texts: int = 0  #: inputs of the model; a text in chunks is several
    computed_tokens: int = 0


def request_cost(
    total_tokens: int, computed_texts: int, computed_tokens: int, nano_usd_per_1k_tokens: int
) -> Cost:
    """Returns the cost of a request. Each of its two amounts is rounded up once.

    Args:
        total_tokens: tokens of all inputs.
        computed_texts: inputs that were computed for this request.
        computed_tokens: their tokens.
        nano_usd_per_1k_tokens: the price.
    """
    return Cost(
        token_cost(computed_tokens, nano_usd_per_1k_tokens),
        token_cost(total_tokens - computed_tokens, nano_usd_per_1k_tokens),
        computed_texts,
        computed_tokens,
    )


def token_cost(tokens: int, nano_usd_per_1k_tokens: int) -> int:
    """Returns the price of tokens in nano-dollars, rounded up."""
    return -(-tokens * nano_usd_per_1k_tokens // 1000)


def as_usd(nano_usd: float) -> float:
    """Returns an amount in US dollars, for JSON."""
    return nano_usd / NANO_USD


def format_usd(nano_usd: int) -> str:
    """Returns an amount in US dollars with nine decimals, exactly."""
    return f"{nano_usd // NANO_USD}.{nano_usd % NANO_USD:09d}"
