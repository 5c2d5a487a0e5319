"""The latest texts that two models have embedded: pairs of vectors → how far they agree."""

from collections.abc import Sequence

import numpy as np

from embedserve_client.migration import agreement as neighbours
from serve_app.engines.rank_correlation import rank_correlation, similarities
from serve_app.live.shadow_sample import Agreement
from serve_app.types import Float32

#: Texts whose pairs are ranked: 20,000 similarities are enough for three digits.
_MAX_RANKED_TEXTS = 200


class VectorPairs:
    """A sliding sample of distinct texts, by a key. Holds their vectors, and no text."""

    def __init__(self, max_texts: int) -> None:
        """Creates an empty sample, which drops the oldest text at `max_texts`."""
        self._max_texts = max_texts
        self._pairs: dict[bytes, tuple[Float32, Float32]] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, key: bytes, first: Float32, second: Float32) -> None:
        """Adds the vectors of a text under both models, whose dimensions may differ."""
        self._pairs[key] = (first, second)
        while len(self._pairs) > self._max_texts:
            del self._pairs[next(iter(self._pairs))]

    def snapshot(self) -> tuple[Sequence[bytes], Float32, Float32] | None:
        """Returns the keys and both models' vectors, shape (n, dim); None: there are no texts."""
        if not self._pairs:
            return None
        first, second = zip(*self._pairs.values(), strict=True)
        return [*self._pairs], np.stack(first), np.stack(second)


def compare(
    keys: Sequence[bytes], first: Float32, second: Float32, *, cosine: bool
) -> Agreement | None:
    """Returns how two models agree on the neighbours of texts; None: there are fewer than three.

    Takes some hundredths of a second for 500 texts.

    Args:
        keys: one for each text, all distinct.
        first: vectors of one model, shape (n, dim).
        second: those of the other one, shape (n, another dim).
        cosine: whether to compare the two vectors of each text; they need the same length.
    """
    sample = neighbours.Sample([key.hex() for key in keys], first, second)
    found = neighbours.agreement(sample, seed=0)
    if found is None:
        return None
    ranked = slice(-_MAX_RANKED_TEXTS, None)
    return Agreement(
        found.rows,
        found.kept,
        found.kept_first,
        rank_correlation(similarities(first[ranked]), similarities(second[ranked])),
        found.mean_cosine if cosine else None,
    )
