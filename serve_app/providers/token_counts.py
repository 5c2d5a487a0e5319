"""Numbers of tokens: before a call as an estimate, after it so that sums are exact."""

from collections.abc import Sequence

#: No tokenizer of a served model makes more tokens of most texts, even of scripts with few Latin
#: letters.
_MIN_BYTES_PER_TOKEN = 2
#: A text with more bytes for each token is none that people write.
_MAX_BYTES_PER_TOKEN = 16


def estimate_tokens(text: str) -> int:
    """Returns a cautious number of tokens: texts in English have half as many."""
    return _utf8_length(text) // _MIN_BYTES_PER_TOKEN + 1


def least_tokens(text: str) -> int:
    """Returns a number of tokens that the text has for certain."""
    return _utf8_length(text) // _MAX_BYTES_PER_TOKEN


def distribute_tokens(total: int, texts: Sequence[str]) -> list[int]:
    """Distributes the tokens of a call over its texts in proportion to their length in UTF-8.

    The sum is exactly `total`: the largest remainders are rounded up.
    """
    lengths = [_utf8_length(text) or 1 for text in texts]
    whole = sum(lengths)
    counts = [total * length // whole for length in lengths]
    by_remainder = sorted(range(len(texts)), key=lambda i: -(total * lengths[i] % whole))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
