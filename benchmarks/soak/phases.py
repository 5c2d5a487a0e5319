"""The phases of the load, which repeat, and what is sent in them."""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from ..faults.apis import APIS
from ..faults.load import Call, make_texts

_NO_STORE_SHARE = 0.2
#: Shares of the calls: one new text, one known text, or else several of both.
_NEW_SHARE, _KNOWN_SHARE = 0.4, 0.4
_DOCUMENT_TEXTS = 8
_FILE_TEXTS = 32
#: As many of the known texts are in three of four queries of known texts, so that L1 answers.
_POPULAR_TEXTS = 40


class Phase(NamedTuple):
    """A part of the cycle."""

    name: str
    duration_s: float
    rate: float  #: factor on the rate of interactive requests
    bulk: bool  #: whether files are embedded


CYCLE = (
    Phase("quiet", 80.0, 0.5, bulk=False),
    Phase("busy", 60.0, 1.5, bulk=False),
    Phase("bulk", 100.0, 1.0, bulk=True),
)
CYCLE_S = sum(phase.duration_s for phase in CYCLE)


def phases(total_s: float) -> Iterator[tuple[float, Phase]]:
    """Yields each phase with its start in seconds, until the end of a run."""
    start_s = 0.0
    for phase in itertools.cycle(CYCLE):
        if start_s >= total_s:
            return
        yield start_s, phase
        start_s += phase.duration_s


def phase_at(time_s: float) -> Phase:
    """Returns the phase at a time since the start."""
    time_s %= CYCLE_S
    for phase in CYCLE:
        if time_s < phase.duration_s:
            return phase
        time_s -= phase.duration_s
    return CYCLE[-1]


def new_texts(seed: int) -> Iterator[str]:
    """Yields texts without end; none occurs twice."""
    for block in itertools.count():
        for text in make_texts(1000, seed):
            yield f"block {block} {text}"


def interactive_calls(known: int, seed: int) -> Iterator[Call]:
    """Yields queries of one text, and documents, in all APIs.

    Args:
        known: number of texts with known vectors.
        seed: decides which.
    """
    rng, new = random.Random(f"interactive/{seed}"), new_texts(seed)
    for number in itertools.count():
        kind = rng.random()
        headers = {"cache-control": "no-store"} if rng.random() < _NO_STORE_SHARE else {}
        if kind < _NEW_SHARE:
            texts, unknown = [], [next(new)]
        elif kind < _NEW_SHARE + _KNOWN_SHARE:
            choices = range(known) if rng.random() < 0.25 else range(min(known, _POPULAR_TEXTS))
            texts, unknown = [rng.choice(choices)], []
        else:
            texts = rng.sample(range(known), _DOCUMENT_TEXTS // 2)
            unknown = [next(new) for _ in range(_DOCUMENT_TEXTS // 2)]
        yield Call(APIS[number % len(APIS)], texts, headers, unknown)


def file_calls(known: int, seed: int) -> Iterator[Call]:
    """Yields bulk requests of many new texts and one known text, as of a file of any length."""
    rng, new = random.Random(f"file/{seed}"), new_texts(seed + 1)
    for number in itertools.count():
        unknown = [next(new) for _ in range(_FILE_TEXTS - 1)]
        texts = [rng.randrange(known)]
        yield Call(APIS[number % len(APIS)], texts, {"x-priority": "bulk"}, unknown)
