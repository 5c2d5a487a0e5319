"""Decides from the samples of a run what grows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from ..faults.ledger import Kind, Outcome
from .phases import phase_at
from .sampler import ProcessSample, Sample
from .trend import Segment, Trend, fit_trend

MIB = 1 << 20
_MINUTE_S, _HOUR_S = 60.0, 3600.0
#: A process is compared with itself if it was sampled in so much of the run, else with others.
_LONG_LIFE = 0.4
_MIN_MINUTE_REQUESTS = 30
#: Roles of the service. What else grows is told, but is Ray's.
OWN_ROLES = frozenset(
    {
        *("Ingress", "CacheLookup", "Embedder", "EmbedServer"),
        *("HAProxy", "ProxyGuard", "Valkey", "serve_app.valkey.supervisor"),
        "serve_app.command.main",  # standalone
    }
)


class Verdict(StrEnum):
    """What a trend says."""

    FLAT = "flat"  #: the slope is less than two standard errors above zero
    UNSURE = "unsure"  #: so it is, but the standard error is large: the run is too short
    SMALL = "small"  #: it is more, and not more than what is tolerated
    GROWS = "grows"


class Quantity(NamedTuple):
    """A number that each process has."""

    name: str
    unit: str  #: of the slope, per hour
    value: Callable[[ProcessSample], float]
    tolerance: float  #: a slope that nobody would act on, per hour


QUANTITIES = (
    Quantity("memory", "MiB/h", lambda process: process.own / MIB, 6.0),
    Quantity("descriptors", "/h", lambda process: process.descriptors, 3.0),
    Quantity("threads", "/h", lambda process: process.threads, 3.0),
)
_FILE_TOLERANCES = {"files": 20.0, "size": 20.0}
_CACHE_TOLERANCES = {"keys": 500.0, "MiB": 2.0}
#: Of the p99, relative to its median.
_LATENCY_TOLERANCE = 0.25
#: A series is not called flat if its slope may be more than so many tolerances.
_UNSURE_TOLERANCES = 4.0


class Finding(NamedTuple):
    """One series and what it says."""

    subject: str  #: a role, `files`, `Valkey` or `requests`
    quantity: str
    unit: str
    lives: int  #: processes, phases, or 1
    first: float  #: median of the first and of the last fifth of the samples
    last: float
    trend: Trend
    verdict: Verdict
    is_own: bool  #: whether it is the service's, and not Ray's


def find(
    samples: Sequence[Sample], outcomes: Iterable[Outcome], start_s: float, warm_up_s: float
) -> list[Finding]:
    """Returns a finding for each series that is long enough.

    Args:
        samples: of the whole run.
        outcomes: interactive requests; their times are monotonic.
        start_s: monotonic time of the start.
        warm_up_s: what is left out at the start of the run.
    """
    judged = [sample for sample in _beyond_data(samples) if sample.time_s >= warm_up_s]
    return [
        *_processes(judged),
        *_files(judged),
        *_cache(judged),
        *_latency(outcomes, start_s, warm_up_s),
    ]


def leaks(findings: Iterable[Finding]) -> list[Finding]:
    """Returns what grows in the service itself."""
    return [f for f in findings if f.is_own and f.verdict is Verdict.GROWS]


def _beyond_data(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Takes the most data so far from Valkey's memory, which its allocator keeps for the next."""
    most = 0
    for sample in samples:
        most = max(most, sample.cache.get("bytes", 0))
        processes = (
            process._replace(own=process.own - most) if process.role == "Valkey" else process
            for process in sample.processes
        )
        yield sample._replace(processes=tuple(processes))


def _processes(samples: Sequence[Sample]) -> list[Finding]:
    by_role: dict[str, dict[int, list[tuple[float, ProcessSample]]]] = {}
    for sample in samples:
        for process in sample.processes:
            lives = by_role.setdefault(process.role, defaultdict(list))
            lives[process.pid].append((sample.time_s, process))
    findings: list[Finding] = []
    for role, lives in sorted(by_role.items()):
        long = [life for life in lives.values() if len(life) >= _LONG_LIFE * len(samples)]
        short = [life for life in lives.values() if len(life) < _LONG_LIFE * len(samples)]
        for quantity in QUANTITIES:
            is_own = role in OWN_ROLES
            segments = [_segment((t, quantity.value(p)) for t, p in life) for life in long]
            ends = _segment((life[-1][0], quantity.value(life[-1][1])) for life in short)
            for subject, found in ((role, segments), (f"{role}, at its end", [ends])):
                findings += _finding(
                    subject, quantity.name, quantity.unit, found, quantity.tolerance, is_own
                )
    return findings


def _files(samples: Sequence[Sample]) -> list[Finding]:
    findings: list[Finding] = []
    for kind in samples[0].files if samples else ():
        counts = [(s.time_s, float(s.files[kind].files)) for s in samples]
        sizes = [(s.time_s, s.files[kind].size / MIB) for s in samples]
        is_own = kind == "service"
        for name, unit, series, tolerance in (
            ("files", "/h", counts, _FILE_TOLERANCES["files"]),
            ("size of files", "MiB/h", sizes, _FILE_TOLERANCES["size"]),
        ):
            findings += _finding(kind, name, unit, [_segment(series)], tolerance, is_own)
    return findings


def _cache(samples: Sequence[Sample]) -> list[Finding]:
    states = [(sample.time_s, sample.cache) for sample in samples if sample.cache]
    keys = _segment((t, float(state["keys"])) for t, state in states)
    size = _segment((t, state["bytes"] / MIB) for t, state in states)
    return [
        *_finding("Valkey", "keys", "/h", [keys], _CACHE_TOLERANCES["keys"], True),
        *_finding("Valkey", "data", "MiB/h", [size], _CACHE_TOLERANCES["MiB"], True),
    ]


def _latency(outcomes: Iterable[Outcome], start_s: float, warm_up_s: float) -> list[Finding]:
    """Compares the p99 of minutes of a phase with each other."""
    by_phase: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for minute, p99_ms in p99_by_minute(outcomes, start_s).items():
        if minute * _MINUTE_S >= warm_up_s:
            middle_s = (minute + 0.5) * _MINUTE_S
            by_phase[phase_at(middle_s).name].append((middle_s, p99_ms))
    if not by_phase:
        return []
    median = float(np.median([p99 for series in by_phase.values() for _, p99 in series]))
    segments = [_segment(series) for series in by_phase.values()]
    return _finding("requests", "p99", "ms/h", segments, _LATENCY_TOLERANCE * median, True)


def p99_by_minute(outcomes: Iterable[Outcome], start_s: float) -> dict[int, float]:
    """Returns the p99 of right replies in ms by the minute of their start, ascending."""
    minutes: defaultdict[int, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.kind is Kind.RIGHT:
            minute = int((outcome.started_s - start_s) / _MINUTE_S)
            minutes[minute].append(outcome.latency_s * 1000)
    return {
        minute: float(np.percentile(latencies, 99))
        for minute, latencies in sorted(minutes.items())
        if len(latencies) >= _MIN_MINUTE_REQUESTS
    }


def _segment(series: Iterable[tuple[float, float]]) -> Segment:
    points = np.array([*series], np.float64).reshape(-1, 2)
    return Segment(points[:, 0] / _HOUR_S, points[:, 1])


def _finding(
    subject: str,
    quantity: str,
    unit: str,
    segments: Sequence[Segment],
    tolerance: float,
    is_own: bool,
) -> list[Finding]:
    trend = fit_trend(segments)
    if trend is None:
        return []
    order = np.argsort(np.concatenate([segment.times for segment in segments]))
    values = np.concatenate([segment.values for segment in segments])[order]
    fifth = max(1, len(values) // 5)
    first, last = float(np.median(values[:fifth])), float(np.median(values[-fifth:]))
    return [
        Finding(
            subject,
            quantity,
            unit,
            len(segments),
            first,
            last,
            trend,
            _judge(trend, tolerance),
            is_own,
        )
    ]


def _judge(trend: Trend, tolerance: float) -> Verdict:
    if trend.is_positive:
        return Verdict.SMALL if trend.slope <= tolerance else Verdict.GROWS
    is_sure = trend.upper_bound <= _UNSURE_TOLERANCES * tolerance
    return Verdict.FLAT if is_sure else Verdict.UNSURE


def series_of(samples: Sequence[Sample]) -> Mapping[str, list[float]]:
    """Returns the own memory of each role in MiB, summed over its processes, by sample."""
    roles = sorted({process.role for sample in samples for process in sample.processes})
    return {
        role: [
            round(sum(p.own for p in sample.processes if p.role == role) / MIB, 1)
            for sample in samples
        ]
        for role in roles
    }
