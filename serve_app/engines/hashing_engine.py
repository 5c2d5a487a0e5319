"""The engine without a trained model: it counts words and pairs of adjacent words.

Feature hashing (Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning"):
each feature adds +1 or -1 to one component, both decided by its hash. Collisions cancel on average,
so that a dot product estimates how many features two texts share. The vectors carry no meaning, but
they are a baseline for search at almost no cost, and they let tests run without weights.
"""

import re
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import cast
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve_app.config.batch_cost import BatchCostSettings
from serve_app.engines.base import ModelInput, TokenIds
from serve_app.errors import InvalidRequest
from serve_app.inputs import Input
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import EngineInfo, Float32, Tokenization

_WORD = re.compile(r"\w+")
#: The token id of a text without words, so that every text has at least one feature.
_NO_WORD = 0
#: The constants of SplitMix64 (Steele et al., 2014).
_GAMMA, _MIX_1, _MIX_2 = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class HashingTokenizer:
    """Splits texts into words and hashes them. It has no vocabulary, so it can't decode."""

    def __init__(self, max_words: int) -> None:
        """Truncates texts to `max_words`."""
        self._max_words = max_words

    def encode(self, texts: Sequence[Input]) -> list[TokenIds]:
        """Returns the CRC-32 of each lower-cased word.

        Raises:
            InvalidRequest: an input is a list of token ids.
        """
        rows = []
        for text in texts:
            if not isinstance(text, str):
                raise _unsupported("it can't read token ids.", "texts")
            words = _WORD.findall(text.lower())
            ids = [
                crc32(word.encode("utf-8", "surrogatepass")) for word in words[: self._max_words]
            ]
            rows.append(TokenIds(ids or [_NO_WORD], len(words) > self._max_words))
        return rows

    def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[Tokenization]:
        """Raises InvalidRequest: there are no tokens to return."""
        raise _unsupported("it can't return tokens.", "texts")

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Raises InvalidRequest: a hash can't be reversed."""
        raise _unsupported("it can't read token ids.", "ids")


class HashingEngine:
    """Texts -> signed feature counts of unit length. Needs neither torch nor model files."""

    streams = 1
    tasks: frozenset[Task] = frozenset(("embed",))

    def __init__(
        self,
        spec: ModelSpec,
        batch_cost: BatchCostSettings | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the width of the vectors and the limit of words from the spec.

        Args:
            spec: the model.
            batch_cost: the minimum duration of a batch; None: 0.
            sleep: waits for seconds in the thread of the engine.
            clock: monotonic time in seconds.
        """
        self._batch_cost = batch_cost or BatchCostSettings()
        self._sleep = sleep
        self._clock = clock
        self.tokenizer = HashingTokenizer(spec.max_tokens)
        self.dim = spec.dim
        self.info = EngineInfo("hashing", "cpu", "fp32", 1, spec.space_id)

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Float32:
        """Returns vectors of shape (len(batch), dim), float32, bit for bit equal in every batch.

        Takes at least the duration that `batch_cost` sets.

        Raises:
            InvalidRequest: the task isn't `embed`.
        """
        if task not in self.tasks:
            raise _unsupported("it has no vectors of tokens.", "texts")
        start_s = self._clock()
        tokens = cast("Sequence[TokenIds]", batch)
        vectors = self._embed(tokens)
        padded_tokens = len(tokens) * max((row.length for row in tokens), default=0)
        min_s = self._batch_cost.fixed_s + self._batch_cost.token_s * padded_tokens
        remaining_s = min_s - (self._clock() - start_s)
        if remaining_s > 0:
            self._sleep(remaining_s)
        return vectors

    def _embed(self, batch: Sequence[TokenIds]) -> Float32:
        lengths = [len(row.ids) for row in batch]
        words = np.fromiter(chain.from_iterable(row.ids for row in batch), np.uint64, sum(lengths))
        rows = np.repeat(np.arange(len(batch)), lengths)
        words = _mix(words)
        # A pair never spans two texts.
        same_text = rows[1:] == rows[:-1]
        pairs = _mix(words[:-1][same_text] + _GAMMA * words[1:][same_text])
        features = np.concatenate((words, pairs))
        rows = np.concatenate((rows, rows[1:][same_text]))
        components = rows * self.dim + (features % np.uint64(self.dim)).astype(np.int64)
        signs = np.where(features >> np.uint64(63), 1.0, -1.0)
        counts = np.bincount(components, signs, len(batch) * self.dim)
        counts = counts.reshape(len(batch), self.dim)
        # n words and n - 1 pairs are an odd number of signs, whose sum is never zero. Sums of
        # integers are exact, so the order of addition doesn't matter.
        norms = np.sqrt((counts * counts).sum(axis=1, keepdims=True))
        return np.asarray(counts / norms, dtype=np.float32)


def _unsupported(reason: str, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"`hashing` has no vocabulary, since it hashes words: {reason} Send texts, or serve a "
        "trained model.",
        param,
    )


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Applies SplitMix64's finalizer: every output bit depends on every input bit."""
    values = values + _GAMMA
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
