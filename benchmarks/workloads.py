"""What is asked of a server: endless streams of requests, the same for the same seed.

Words come from the default model's own vocabulary, so a word is about one token for BERT-like
models and real work for every tokenizer. Except in `zipf`, practically no text occurs twice: no
cache can help.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from serve_app.config import MINILM
from serve_app.models import folder

_ZIPF_TEXTS = 20_000
_ZIPF_EXPONENT = 1.1


@dataclass(frozen=True, slots=True)
class Workload:
    """A named stream of requests; each request is a list of texts."""

    name: str
    description: str
    stream: Callable[[random.Random], Iterator[list[str]]]

    def requests(self, seed: int) -> Iterator[list[str]]:
        """The stream for a seed; it never ends."""
        return self.stream(random.Random(f"{self.name} {seed}"))


@cache
def vocabulary() -> list[str]:
    """Whole words of four letters or more."""
    words = (folder(MINILM) / "vocab.txt").read_text(encoding="utf-8").split()
    return [word for word in words if word.isalpha() and len(word) >= 4]


def _text(rng: random.Random, fewest: int, most: int) -> str:
    return " ".join(rng.choices(vocabulary(), k=rng.randint(fewest, most)))


def _query(rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield [_text(rng, 5, 12)]


def _document(rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield [_text(rng, 5, 60) for _ in range(32)]


def _mixed(rng: random.Random) -> Iterator[list[str]]:
    queries, documents = _query(rng), _document(rng)
    while True:
        yield next(documents if rng.random() < 0.1 else queries)


def _zipf(rng: random.Random) -> Iterator[list[str]]:
    texts = [_text(rng, 5, 12) for _ in range(_ZIPF_TEXTS)]
    weights = list(accumulate(rank**-_ZIPF_EXPONENT for rank in range(1, _ZIPF_TEXTS + 1)))
    while True:
        yield rng.choices(texts, cum_weights=weights)


def _long(rng: random.Random) -> Iterator[list[str]]:
    while True:
        yield [_text(rng, 150, 300) for _ in range(4)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("query", "one text of 5-12 words", _query),
        Workload("document", "32 texts of 5-60 words", _document),
        Workload("mixed", "nine queries to each request of 32 documents", _mixed),
        Workload("zipf", "one of 20,000 queries, popular ones often (Zipf 1.1)", _zipf),
        Workload("long", "4 texts of 150-300 words", _long),
    )
}
