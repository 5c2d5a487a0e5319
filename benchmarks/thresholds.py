"""Thresholds for EmbedServe's speed, checked by one alternated run: `embedserve bench check`."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from .experiments import BULK_ALONE, CHECK, UNCACHED, check_experiments
from .paths import RESULTS
from .peers.embedserve import baseline_peer
from .report.page import markdown_table
from .report.results import Series, SuiteResults, format_number, format_spread
from .suite import run_experiments

_ENGINE, _INFINITY = "engine", "infinity-optimum"
_SEPARATE, _COLOCATED, _STANDALONE = (
    "embedserve",
    "embedserve-colocated",
    "embedserve-standalone",
)
_BASELINE = "embedserve-baseline"


class Threshold(NamedTuple):
    """A limit on a metric, or on its ratio to another one."""

    title: str
    value: Series
    limit: float
    divisor: Series | None = None
    unit: str = "×"
    lower_is_better: bool = False

    def measured(self, results: SuiteResults) -> float | None:
        """Returns the median of the metric or of the ratio; None if it was not measured."""
        if self.divisor is not None:
            return results.series_ratio(self.value, self.divisor)
        spread = results.spread(*self.value)
        return None if spread is None else spread.median

    def is_met(self, measured: float) -> bool:
        """Whether a measured value is within the limit."""
        return measured <= self.limit if self.lower_is_better else measured >= self.limit


def _queries(peer: str, clients: float) -> Series:
    return Series("server", peer, clients, "requests_per_s")


def _documents(peer: str) -> Series:
    return Series("server", peer, 4, "texts_per_s")


def _lone_query(peer: str) -> Series:
    return Series("server", peer, 1, "p50_ms")


def _to_infinity(
    peer: str,
    lone_query: float,
    *,
    queries_32: float,
    queries_8: float | None = None,
    documents: float | None = None,
) -> Iterator[Threshold]:
    for clients, limit in ((32, queries_32), (8, queries_8)):
        if limit is not None:
            yield Threshold(
                f"{peer}: queries at {clients} clients, to infinity (ONNX)",
                _queries(peer, clients),
                limit,
                _queries(_INFINITY, clients),
            )
    yield Threshold(
        f"{peer}: p50 of a lone query, to infinity (ONNX)",
        _lone_query(peer),
        lone_query,
        _lone_query(_INFINITY),
        lower_is_better=True,
    )
    if documents is not None:
        yield Threshold(
            f"{peer}: documents at 4 clients, to infinity (ONNX)",
            _documents(peer),
            documents,
            _documents(_INFINITY),
        )


def _beside_bulk(peer: str) -> Iterator[Threshold]:
    yield Threshold(
        f"{peer}: p99 of queries during bulk load, to their p99 alone",
        Series("bulk", peer, 4, "p99_ms"),
        4,
        Series("bulk", peer, 0, "p99_ms"),
        lower_is_better=True,
    )
    yield Threshold(
        f"{peer}: documents during queries, to documents alone",
        Series("bulk", peer, 4, "bulk_texts_per_s"),
        0.85,
        Series("bulk", peer, BULK_ALONE, "texts_per_s"),
    )


def _shared_hits(peer: str) -> Threshold:
    return Threshold(
        f"{peer}: hits of the shared server, to uncached queries",
        Series("hits", peer, 32, "requests_per_s"),
        5,
        Series("hits", peer, UNCACHED, "requests_per_s"),
    )


def _hits_to_baseline(peer: str) -> Threshold:
    return Threshold(
        f"{peer}: hits of L1 at 32 clients, to the baseline",
        Series("hits", peer, 32, "requests_per_s"),
        1.5,
        Series("hits", _BASELINE, 32, "requests_per_s"),
    )


THRESHOLDS = (
    *_to_infinity(_COLOCATED, 0.65, queries_32=2.2, queries_8=1.8, documents=2),
    Threshold(
        f"{_COLOCATED}: queries at 32 clients, to the engine alone",
        _queries(_COLOCATED, 32),
        0.7,
        Series("server", _ENGINE, 32, "texts_per_s"),
    ),
    Threshold(
        f"{_COLOCATED}: documents at 4 clients, to the engine alone",
        _documents(_COLOCATED),
        0.9,
        _documents(_ENGINE),
    ),
    *_to_infinity(_STANDALONE, 0.6, queries_32=2.4),
    Threshold(
        f"{_STANDALONE}: first vector after the start",
        Series("server", _STANDALONE, 4, "start_s"),
        4,
        unit=" s",
        lower_is_better=True,
    ),
    Threshold(
        f"{_STANDALONE}: memory (PSS) after load",
        Series("server", _STANDALONE, 4, "pss_mib"),
        450e6 / 2**20,
        unit=" MiB",
        lower_is_better=True,
    ),
    Threshold(
        f"{_STANDALONE}: processes",
        Series("server", _STANDALONE, 4, "processes"),
        3,
        unit="",
        lower_is_better=True,
    ),
    *_to_infinity(_SEPARATE, 1, queries_32=1.5),
    *map(_hits_to_baseline, (_SEPARATE, _COLOCATED, _STANDALONE)),
    *map(_shared_hits, ("embedserve-shared-hits", "embedserve-colocated-shared-hits")),
    *(t for peer in (_SEPARATE, _COLOCATED, _STANDALONE) for t in _beside_bulk(peer)),
)


def run_check(*, rounds: int | None, precision: str | None, baseline: Path | None) -> int:
    """Measures everything that the thresholds need and prints figures and verdicts.

    Args:
        rounds: how often each point is measured; None: the default.
        precision: of EmbedServe's engine; None: its default for this CPU.
        baseline: a checkout of another version of EmbedServe.

    Returns:
        The command's exit status: 1 if a threshold is not met.
    """
    schedule = dataclasses.replace(CHECK, rounds=rounds or CHECK.rounds)
    peers = [] if baseline is None else [baseline_peer(baseline.absolute())]
    file = RESULTS / f"check-{datetime.now(UTC):%Y-%m-%dT%H%M}.jsonl"
    if not run_experiments(schedule, check_experiments(schedule, peers), file, precision):
        return 1
    return print_check(file)


def print_check(file: Path) -> int:
    """Prints the figures and verdicts of saved records, and returns the exit status."""
    results = SuiteResults.read(file)
    machine = results.first["machine"]
    print(
        f"{machine['cores']} cores ({machine['cpu']}: {', '.join(machine['instruction_sets'])}), "
        f"EmbedServe at {results.first['precision']}, medians of {results.first['rounds']} "
        f"alternated runs (minimum\u2013maximum), commit {results.first['commit']}\n"
    )
    print(markdown_table([*_figures(results)]), end="\n\n")
    verdicts = [*_verdicts(results)]
    print(markdown_table([["threshold", "limit", "measured", ""], *verdicts]))
    for peer, reason in results.unavailable().items():
        print(f"\nnot measured: {peer}: {reason}")
    print(f"\nThe records are in {file}.")
    return int(any(verdict == "**missed**" for *_, verdict in verdicts))


def _figures(results: SuiteResults) -> Iterator[list[str]]:
    yield ["", "", "requests/s", "texts/s", "p50, ms", "p99, ms"]
    points = dict.fromkeys(
        (r["experiment"], r["x"], r["workload"], r["connections"], r["rate"], r["bulk"], r["peer"])
        for r in sorted(results.records, key=lambda r: str(r["experiment"]))
        if "x" in r
    )
    for experiment, x, workload, connections, rate, bulk, peer in points:
        load = f"{rate:g}/s" if rate else f"{connections} clients"
        title = f"{experiment}: {workload}, {load}" + (f", {bulk} bulk clients" if bulk else "")
        spreads = (
            results.spread(experiment, peer, x, metric)
            for metric in ("requests_per_s", "texts_per_s", "p50_ms", "p99_ms")
        )
        yield [title, results.titles[peer], *map(format_spread, spreads)]


def _verdicts(results: SuiteResults) -> Iterator[list[str]]:
    for threshold in THRESHOLDS:
        measured = threshold.measured(results)
        sign = "\u2264" if threshold.lower_is_better else "\u2265"
        limit = f"{sign} {format_number(threshold.limit)}{threshold.unit}"
        if measured is None:
            yield [threshold.title, limit, "\u2013", "not measured"]
        else:
            verdict = "met" if threshold.is_met(measured) else "**missed**"
            yield [threshold.title, limit, f"{format_number(measured)}{threshold.unit}", verdict]
