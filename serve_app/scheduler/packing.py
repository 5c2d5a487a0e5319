"""Which queued texts form the next batch. The scheduler and the simulator share these rules."""

from collections.abc import Sequence


def select_batch(lengths: Sequence[int], max_texts: int, max_tokens: int) -> Sequence[int]:
    """Returns the positions of the texts of the next batch, in ascending order.

    The batch holds the oldest text, whatever its length, and the texts closest to it in length,
    as long as all of them, padded to the longest, fit into `max_tokens`.

    Args:
        lengths: numbers of tokens of the queued texts, oldest first; at least one.
        max_texts: limit of texts.
        max_tokens: limit of padded tokens.
    """
    count = len(lengths)
    if count <= max_texts and (count == 1 or max(lengths) * count <= max_tokens):
        return range(count)
    oldest = lengths[0]
    by_distance = sorted(range(count), key=lambda i: abs(lengths[i] - oldest))
    longest, batch = 0, list[int]()
    for i in by_distance[:max_texts]:
        longest = max(longest, lengths[i])
        if batch and longest * (len(batch) + 1) > max_tokens:
            break
        batch.append(i)
    return sorted(batch)


def bulk_goes_first(waited_s: float, promotion_after_s: float, last_was_bulk: bool) -> bool:
    """Returns whether bulk texts are served before interactive ones that wait as well.

    Args:
        waited_s: age of the oldest bulk text.
        promotion_after_s: how long bulk texts wait before they alternate with interactive ones.
        last_was_bulk: whether the previous batch was a bulk batch.
    """
    return waited_s > promotion_after_s and not last_was_bulk
