"""Workloads: endless streams of requests that are equal for equal seeds.

Words come from the default model's vocabulary: a word is about one token for BERT-like models and
realistic work for every tokenizer. Texts repeat only in `zipf` and in `repeat_workload`, so that
caches do not affect the other workloads.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, cycle

from serve_app.config import MINILM
from serve_app.models import model_dir

_ZIPF_TEXTS = 20_000
_ZIPF_EXPONENT = 1.1
_REPEATED_TEXTS = 64

RequestStream = Callable[[random.Random], Iterator[list[str]]]


@dataclass(frozen=True, slots=True)
class LoadShape:
    """An arrival rate that varies during a run; its average is the requested rate."""

    #: Maps the elapsed share of a run, 0 to 1, to a factor on the rate.
    rate_factor: Callable[[float], float]
    peak_factor: float  #: the maximum of `rate_factor`


@dataclass(frozen=True, slots=True)
class Workload:
    """A named stream of requests; each request is a list of texts."""

    name: str
    description: str
    stream: RequestStream
    shape: LoadShape | None = None  #: of an open-loop rate; None: constant
    cached_texts: Sequence[str] = ()  #: to embed before the load, so that it hits a cache

    def requests(self, seed: int) -> Iterator[list[str]]:
        """Returns an endless iterator over the requests of a seed."""
        return self.stream(random.Random(f"{self.name} {seed}"))


@cache
def vocabulary() -> list[str]:
    """Returns the vocabulary's complete words of at least four letters."""
    words = (model_dir(MINILM) / "vocab.txt").read_text(encoding="utf-8").split()
    return [word for word in words if word.isalpha() and len(word) >= 4]


def _random_text(rng: random.Random, min_words: int, max_words: int) -> str:
    return " ".join(rng.choices(vocabulary(), k=rng.randint(min_words, max_words)))


def _random_requests(texts: int, min_words: int, max_words: int) -> RequestStream:
    def stream(rng: random.Random) -> Iterator[list[str]]:
        while True:
            yield [_random_text(rng, min_words, max_words) for _ in range(texts)]

    return stream


_query = _random_requests(1, 5, 12)
_document = _random_requests(32, 5, 60)


def _mixed(rng: random.Random) -> Iterator[list[str]]:
    queries, documents = _query(rng), _document(rng)
    while True:
        yield next(documents if rng.random() < 0.1 else queries)


def _zipf(rng: random.Random) -> Iterator[list[str]]:
    texts = [_random_text(rng, 5, 12) for _ in range(_ZIPF_TEXTS)]
    weights = list(accumulate(rank**-_ZIPF_EXPONENT for rank in range(1, _ZIPF_TEXTS + 1)))
    while True:
        yield rng.choices(texts, cum_weights=weights)


def batch_workload(texts: int, min_words: int, max_words: int) -> Workload:
    """Returns a workload whose requests hold `texts` texts of `min_words` to `max_words` words."""
    words = f"{min_words}-{max_words}" if min_words < max_words else str(max_words)
    stream = _random_requests(texts, min_words, max_words)
    return Workload(f"{texts} x {words} words", f"{texts} texts of {words} words", stream)


def repeat_workload(share: float) -> Workload:
    """Returns queries of which a share repeats one of 64 texts, the same texts for every seed."""
    repeated = [_random_text(random.Random(number), 5, 12) for number in range(_REPEATED_TEXTS)]

    def stream(rng: random.Random) -> Iterator[list[str]]:
        queries = _query(rng)
        while True:
            yield [rng.choice(repeated)] if rng.random() < share else next(queries)

    return Workload(f"repeat {share:.0%}", f"queries, {share:.0%} of them repeated", stream)


def cached_workload(texts: int) -> Workload:
    """Returns queries that repeat so many texts in turn, the same for every seed.

    With fewer clients than texts no two requests in flight have the same one.
    """
    cached = [_random_text(random.Random(f"cached {number}"), 5, 12) for number in range(texts)]

    def stream(rng: random.Random) -> Iterator[list[str]]:
        return cycle([text] for text in cached)

    return Workload(f"cached {texts}", "cached queries", stream, cached_texts=cached)


_RAMP = LoadShape(lambda elapsed: 2 * elapsed, peak_factor=2.0)
#: Four bursts a run. Each lasts a quarter of its period, at six times the rate between bursts.
_BURST = LoadShape(
    lambda elapsed: 8 / 3 if math.modf(elapsed * 4)[0] >= 0.75 else 4 / 9, peak_factor=8 / 3
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("query", "one text of 5-12 words", _query),
        Workload("document", "32 texts of 5-60 words", _document),
        Workload("mixed", "nine queries to each request of 32 documents", _mixed),
        Workload("zipf", "one of 20,000 queries, popular ones often (Zipf 1.1)", _zipf),
        Workload("long", "4 texts of 150-300 words", _random_requests(4, 150, 300)),
        Workload("largest", "2,048 texts of 245 words", _random_requests(2048, 245, 245)),
        Workload("ramp", "queries; the rate rises from zero to twice --rate", _query, _RAMP),
        Workload("burst", "queries; four bursts at six times the base rate", _query, _BURST),
    )
}
