"""The tokens of a request, as OpenAI's replies report them."""

from typing import TypedDict

from serve_app.results import ComputedResult


class Usage(TypedDict):
    """Tokens of a request; the total includes cached tokens."""

    prompt_tokens: int
    total_tokens: int
    cached_tokens: int


def usage(result: ComputedResult) -> Usage:
    """Returns the tokens of a result."""
    tokens = result.total_tokens
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "cached_tokens": result.cached_tokens,
    }
