"""The records of one suite, and what is asked of them: medians over rounds, spread, ratios."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

OURS = "embedserve"

Record = dict[str, Any]


class Spread(NamedTuple):
    """A figure over all rounds."""

    median: float
    least: float
    most: float


class Figures:
    """Records of one suite, looked up by experiment, peer, and place on the axis."""

    def __init__(self, records: Iterable[Record]) -> None:
        """All records of one run of the suite, in the order in which they were made."""
        self.records = list(records)
        self.first = self.records[0]
        self.titles: dict[str, str] = {r["peer"]: r["title"] for r in self.records if "title" in r}

    @classmethod
    def read(cls, file: Path) -> "Figures":
        """The records of a file."""
        return cls(orjson.loads(row) for row in file.read_bytes().splitlines())

    def peers(self, experiment: str) -> list[str]:
        """Who took part, ours first."""
        names = dict.fromkeys(r["peer"] for r in self._of(experiment))
        return sorted(names, key=lambda name: not name.startswith(OURS))

    def xs(self, experiment: str, peer: str) -> list[float]:
        """The places on the axis that were measured in every round.

        A rate that swamped a peer in a later round has fewer, and no median worth the name.
        """
        counts = Counter(r["x"] for r in self._of(experiment) if r["peer"] == peer)
        most = max(counts.values(), default=0)
        return sorted(x for x, count in counts.items() if count == most)

    def at(self, experiment: str, peer: str, x: float, key: str) -> Spread | None:
        """A figure over all rounds; None where nothing was measured, infinite where nothing came.

        A round without one answer has no latency: it counts as an endless one.
        """
        values = list(self._rounds(experiment, peer, x, key).values())
        if not values:
            return None
        return Spread(statistics.median(values), min(values), max(values))

    def ratio(self, experiment: str, peer: str, other: str, x: float, key: str) -> float | None:
        """The median of the ratios of runs that stood in one round."""
        first = self._rounds(experiment, peer, x, key)
        second = self._rounds(experiment, other, x, key)
        ratios = [first[r] / second[r] for r in first if second.get(r)]
        usable = [ratio for ratio in ratios if math.isfinite(ratio)]
        return statistics.median(usable) if usable else None

    def best(
        self, experiment: str, x: float, key: str, *, low: bool, without: str = OURS
    ) -> str | None:
        """The peer with the best median, all of ours aside."""
        found = {
            peer: spread.median
            for peer in self.peers(experiment)
            if not peer.startswith((OURS, without))
            and (spread := self.at(experiment, peer, x, key)) is not None
        }
        if not found:
            return None
        return (min if low else max)(found, key=found.__getitem__)

    def left_out(self) -> dict[str, str]:
        """Peers that weren't measured, and why."""
        return {r["peer"]: r["why"] for r in self._of("left out")}

    def _of(self, experiment: str) -> Iterable[Record]:
        return (r for r in self.records if r["experiment"] == experiment)

    def _rounds(self, experiment: str, peer: str, x: float, key: str) -> dict[int, float]:
        return {
            r["round"]: r.get(key, math.inf)
            for r in self._of(experiment)
            if r["peer"] == peer and r["x"] == x
        }


def number(value: float) -> str:
    """A figure to about three digits, none of them more exact than a measurement is."""
    if math.isinf(value):
        return "none"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value: float | None) -> str:
    """A ratio with its sign."""
    return "–" if value is None else f"{value:.2f}×"


def spread(value: Spread | None) -> str:
    """A median, and least and most behind it where there are several rounds."""
    if value is None:
        return "–"
    if value.least == value.most:
        return number(value.median)
    return f"{number(value.median)} ({number(value.least)}–{number(value.most)})"
