"""What is asked of a server: endless streams of requests, the same for the same seed.

Words come from the default model's own vocabulary, so a word is about one token for BERT-like
models and real work for every tokenizer. Except in `zipf` and in what `repeating` makes,
practically no text occurs twice: no cache can help.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from serve_app.config import MINILM
from serve_app.models import model_dir

_ZIPF_TEXTS = 20_000
_ZIPF_EXPONENT = 1.1
_REPEATED_TEXTS = 64

Stream = Callable[[random.Random], Iterator[list[str]]]


@dataclass(frozen=True, slots=True)
class Shape:
    """How an arrival rate goes up and down; over a whole run it is on average what was asked."""

    at: Callable[[float], float]  #: factor on the rate, by the share of the run that is over
    peak: float  #: the largest factor


@dataclass(frozen=True, slots=True)
class Workload:
    """A named stream of requests; each request is a list of texts."""

    name: str
    description: str
    stream: Stream
    shape: Shape | None = None  #: of the arrivals, open loop; None: even

    def requests(self, seed: int) -> Iterator[list[str]]:
        """The stream for a seed; it never ends."""
        return self.stream(random.Random(f"{self.name} {seed}"))


@cache
def vocabulary() -> list[str]:
    """Whole words of four letters or more."""
    words = (model_dir(MINILM) / "vocab.txt").read_text(encoding="utf-8").split()
    return [word for word in words if word.isalpha() and len(word) >= 4]


def _text(rng: random.Random, fewest: int, most: int) -> str:
    return " ".join(rng.choices(vocabulary(), k=rng.randint(fewest, most)))


def _texts(n: int, fewest: int, most: int) -> Stream:
    def stream(rng: random.Random) -> Iterator[list[str]]:
        while True:
            yield [_text(rng, fewest, most) for _ in range(n)]

    return stream


_query = _texts(1, 5, 12)
_document = _texts(32, 5, 60)


def _mixed(rng: random.Random) -> Iterator[list[str]]:
    queries, documents = _query(rng), _document(rng)
    while True:
        yield next(documents if rng.random() < 0.1 else queries)


def _zipf(rng: random.Random) -> Iterator[list[str]]:
    texts = [_text(rng, 5, 12) for _ in range(_ZIPF_TEXTS)]
    weights = list(accumulate(rank**-_ZIPF_EXPONENT for rank in range(1, _ZIPF_TEXTS + 1)))
    while True:
        yield rng.choices(texts, cum_weights=weights)


def sized(texts: int, fewest: int, most: int) -> Workload:
    """Requests of so many texts, each of `fewest` to `most` words."""
    words = f"{fewest}-{most}" if fewest < most else str(most)
    name = f"{texts} x {words} words"
    return Workload(name, f"{texts} texts of {words} words", _texts(texts, fewest, most))


def repeating(share: float) -> Workload:
    """Queries of which a share was asked before: one of 64, the same ones for every seed."""
    known = [_text(random.Random(number), 5, 12) for number in range(_REPEATED_TEXTS)]

    def stream(rng: random.Random) -> Iterator[list[str]]:
        queries = _query(rng)
        while True:
            yield [rng.choice(known)] if rng.random() < share else next(queries)

    return Workload(f"repeat {share:.0%}", f"queries, {share:.0%} of them asked before", stream)


_RAMP = Shape(lambda gone: 2 * gone, peak=2.0)
#: Four bursts a run, each a quarter of its period, six times what is asked between them.
_BURST = Shape(lambda gone: 8 / 3 if math.modf(gone * 4)[0] >= 0.75 else 4 / 9, peak=8 / 3)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("query", "one text of 5-12 words", _query),
        Workload("document", "32 texts of 5-60 words", _document),
        Workload("mixed", "nine queries to each request of 32 documents", _mixed),
        Workload("zipf", "one of 20,000 queries, popular ones often (Zipf 1.1)", _zipf),
        Workload("long", "4 texts of 150-300 words", _texts(4, 150, 300)),
        Workload("ramp", "queries; the rate climbs from nothing to twice itself", _query, _RAMP),
        Workload("burst", "queries; four times a run six times as many", _query, _BURST),
    )
}
