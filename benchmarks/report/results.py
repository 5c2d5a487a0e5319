"""The results of one suite: medians over rounds, their spread, and ratios between peers."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import orjson

from ..record import Record

EMBEDSERVE = "embedserve"
#: The experiment under which a peer that can't be measured is recorded.
UNAVAILABLE = "left out"


class Spread(NamedTuple):
    """A metric over all rounds."""

    median: float
    minimum: float
    maximum: float


class Series(NamedTuple):
    """One metric of a peer at one load point, over all rounds."""

    experiment: str
    peer: str
    x: float
    metric: str


class SuiteResults:
    """The records of one suite, by experiment, peer and load point."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Holds all records of one suite, in the order in which they were measured."""
        self.records = list(records)
        self.first = self.records[0]
        self.titles: dict[str, str] = {r["peer"]: r["title"] for r in self.records if "title" in r}

    @classmethod
    def read(cls, file: Path) -> "SuiteResults":
        """Reads a file of records, one line of JSON each."""
        return cls(orjson.loads(row) for row in file.read_bytes().splitlines())

    def peers(self, experiment: str) -> list[str]:
        """Returns the peers of an experiment, EmbedServe's variants first."""
        names = dict.fromkeys(r["peer"] for r in self._records(experiment))
        return sorted(names, key=lambda name: not name.startswith(EMBEDSERVE))

    def x_values(self, experiment: str, peer: str) -> list[float]:
        """Returns the load points that were measured in every round.

        A rate that saturated the peer has fewer measurements, and no meaningful median.
        """
        counts = Counter(r["x"] for r in self._records(experiment) if r["peer"] == peer)
        rounds = max(counts.values(), default=0)
        return sorted(x for x, count in counts.items() if count == rounds)

    def spread(self, experiment: str, peer: str, x: float, metric: str) -> Spread | None:
        """Returns a metric over all rounds, or None if the point was not measured.

        A round in which no request succeeded has no latency and counts as infinite.
        """
        values = list(self._by_round(experiment, peer, x, metric).values())
        if not values:
            return None
        return Spread(statistics.median(values), min(values), max(values))

    def ratio(self, experiment: str, peer: str, other: str, x: float, metric: str) -> float | None:
        """Returns the median over rounds of the ratio of two peers within a round."""
        return self.series_ratio(
            Series(experiment, peer, x, metric), Series(experiment, other, x, metric)
        )

    def series_ratio(self, numerator: Series, denominator: Series) -> float | None:
        """Returns the median over rounds of the ratio of two series within a round."""
        first, second = self._by_round(*numerator), self._by_round(*denominator)
        ratios = [first[r] / second[r] for r in first if second.get(r)]
        finite = [ratio for ratio in ratios if math.isfinite(ratio)]
        return statistics.median(finite) if finite else None

    def best_peer(
        self,
        experiment: str,
        x: float,
        metric: str,
        *,
        lower_is_better: bool,
        exclude: str = EMBEDSERVE,
    ) -> str | None:
        """Returns the peer with the best median, without EmbedServe's variants and `exclude`."""
        medians = {
            peer: spread.median
            for peer in self.peers(experiment)
            if not peer.startswith((EMBEDSERVE, exclude))
            and (spread := self.spread(experiment, peer, x, metric)) is not None
        }
        if not medians:
            return None
        return (min if lower_is_better else max)(medians, key=medians.__getitem__)

    def unavailable(self) -> dict[str, str]:
        """Returns the peers that were not measured, and the reasons."""
        return {r["peer"]: r["why"] for r in self._records(UNAVAILABLE)}

    def _records(self, experiment: str) -> Iterable[Record]:
        return (r for r in self.records if r["experiment"] == experiment)

    def _by_round(self, experiment: str, peer: str, x: float, metric: str) -> dict[int, float]:
        return {
            r["round"]: r.get(metric, math.inf)
            for r in self._records(experiment)
            if r["peer"] == peer and r["x"] == x
        }


def format_number(value: float) -> str:
    """Formats a value with about three digits, the precision of a measurement."""
    if math.isinf(value):
        return "none"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_ratio(value: float | None) -> str:
    """Formats a ratio with a multiplication sign."""
    return "–" if value is None else f"{value:.2f}×"


def format_median(value: Spread | None) -> str:
    """Formats a median; a dash for what was not measured."""
    return "–" if value is None else format_number(value.median)


def format_spread(value: Spread | None) -> str:
    """Formats a median, with minimum and maximum in brackets if they differ."""
    if value is None:
        return "–"
    if value.minimum == value.maximum:
        return format_number(value.median)
    minimum, maximum = format_number(value.minimum), format_number(value.maximum)
    return f"{format_number(value.median)} ({minimum}–{maximum})"
