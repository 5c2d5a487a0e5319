"""The engine that knows no model: it counts words and pairs of words.

Feature hashing (Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning"):
each feature adds +1 or -1 to one component, both decided by its hash, so that collisions cancel
on average and a dot product estimates how many features two texts share. No sense of meaning, but
a baseline for search that costs next to nothing, and an engine for tests that needs no weights.
"""

import re
from collections.abc import Sequence
from itertools import chain
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve_app.engines.base import TokenIds
from serve_app.errors import InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import EngineInfo, Float32, Input, Tokenization

_WORD = re.compile(r"\w+")
#: Stands for a text without words, so that it has a feature too.
_NO_WORD = 0
#: The constants of SplitMix64 (Steele et al., 2014).
_GAMMA, _MIX_1, _MIX_2 = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class HashingEngine:
    """Words to signed counts, at unit length. Needs no torch, no tokenizer and no files."""

    streams = 1

    def __init__(self, spec: ModelSpec) -> None:
        """Takes the width and the limit, in words, from the spec."""
        self._max_words = spec.max_tokens
        self.dim = spec.dim
        self.info = EngineInfo("hashing", "cpu", "fp32", 1, spec.space_id)

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        """The hashes of each text's words, lower-cased, cut at the limit.

        Raises:
            InvalidRequest: there are token ids among them.
        """
        tokens = []
        for text in texts:
            if not isinstance(text, str):
                raise _refusal("it can't read token ids.", "texts")
            words = _WORD.findall(text.lower())
            kept = words[: self._max_words]
            ids = [crc32(word.encode("utf-8", "surrogatepass")) for word in kept]
            tokens.append(TokenIds(ids or [_NO_WORD], len(words) > self._max_words))
        return tokens

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Tokenization]:
        """Nothing that it could tell.

        Raises:
            InvalidRequest: always.
        """
        raise _refusal("it can't tell tokens.", "texts")

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """Nothing that it could tell.

        Raises:
            InvalidRequest: always.
        """
        raise _refusal("it can't read token ids.", "ids")

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, each the same bits in every batch."""
        counted = [len(tokens.ids) for tokens in batch]
        words = np.fromiter(chain.from_iterable(t.ids for t in batch), np.uint64, sum(counted))
        rows = np.repeat(np.arange(len(batch)), counted)
        words = _mixed(words)
        # A word and the next one, but not over the end of a text.
        inside = rows[1:] == rows[:-1]
        pairs = _mixed(words[:-1][inside] + _GAMMA * words[1:][inside])
        features = np.concatenate((words, pairs))
        rows = np.concatenate((rows, rows[1:][inside]))
        places = rows * self.dim + (features % np.uint64(self.dim)).astype(np.int64)
        signs = np.where(features >> np.uint64(63), 1.0, -1.0)
        counts = np.bincount(places, signs, len(batch) * self.dim).reshape(len(batch), self.dim)
        # n words and n - 1 pairs are an odd number of ones, which never cancel altogether. And sums
        # of whole numbers are exact, in whatever order they are taken.
        lengths = np.sqrt((counts * counts).sum(axis=1, keepdims=True))
        return np.asarray(counts / lengths, dtype=np.float32)

    def embed_tokens(self, batch: Sequence[TokenIds]) -> list[Float32]:
        """Nothing that it has.

        Raises:
            InvalidRequest: always.
        """
        raise _refusal("it gives no vectors of tokens.", "texts")


def _refusal(what: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"`hashing` has no vocabulary, since it hashes words: {what} Send texts, or serve a "
        "trained model.",
        param,
    )


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value: SplitMix64's finaliser."""
    values = values + _GAMMA
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
