"""Soaks one service: start → load in phases, with samples → end of the load → record."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ..display import Display
from ..faults.ledger import Figures, Outcome
from ..faults.load import Load, fetch_references, make_texts
from ..faults.reply_check import ReplyCheck
from ..record import Record, make_record
from .phases import file_calls, interactive_calls, phases
from .sampler import INTERVAL_S, Sample, Sampler
from .service import CACHE_MAX_BYTES, TTL_S, SoakedService
from .side_clients import SideClients
from .verdict import Finding, find, leaks, p99_by_minute, series_of

_TEXTS = 400
_START_S = 60.0
#: Requests of files that are open at the same time.
_FILE_REQUESTS = 4
#: More than the service can answer: the number of open requests is the limit.
_FILE_RATE = 100.0
_MINUTE_S = 60.0
#: After the load, keys have expired and connections are closed.
_SETTLE_S = TTL_S + 30.0
#: With a longer gap between two samples, latencies and losses are not the service's.
_MAX_GAP_S = 3 * INTERVAL_S
_BROKEN = ("failed", "lost", "wrong")
#: Points of the record's series at most.
_MAX_POINTS = 240


class _Run(NamedTuple):
    """What a load has left."""

    start_s: float  #: monotonic
    interactive: Load
    files: Load
    side: SideClients
    samples: list[Sample]  #: taken under load
    after: Sample  #: taken when all keys should have expired


def soak(
    topology: str, minutes: float, warm_up_minutes: float, rate: float, seed: int, display: Display
) -> Record:
    """Runs a soak and returns its record.

    Args:
        topology: of the service.
        minutes: length of the load, warm-up included.
        warm_up_minutes: what is left out of the trends.
        rate: interactive requests per second; the phases change it.
        seed: decides what is sent.
        display: shows the progress.

    Raises:
        ServiceFailure: the service ended, or nothing answers any more.
    """
    with SoakedService(topology) as service:
        display.start_step(f"{topology}: the service starts")
        for progress in service.start():
            display.start_step(f"{topology}: the service starts: {progress}")
        texts = make_texts(_TEXTS, seed)
        check = ReplyCheck(*fetch_references(service.url, service.api_key, texts))
        display.finish_step(_START_S, "")
        service.watch()
        run = _load(service, texts, check, minutes, rate, seed, display)
    parameters = {
        "bench": "soak",
        "command": f"python -m benchmarks.soak --minutes {minutes:g} --topology {topology}",
        "topology": topology,
        "minutes": minutes,
        "warm_up_minutes": warm_up_minutes,
        "rate": rate,
    }
    outcomes, file_outcomes = run.interactive.ledger.outcomes, run.files.ledger.outcomes
    findings = find(run.samples, outcomes, run.start_s, warm_up_minutes * _MINUTE_S)
    metrics = {
        "texts": run.interactive.sent_texts + run.files.sent_texts,
        "interactive": Figures.of(outcomes)._asdict(),
        "files": Figures.of(file_outcomes)._asdict(),
        "errors": {**run.interactive.ledger.errors(), **run.files.ledger.errors()},
        "side_clients": dict(run.side.expected),
        "side_clients_unexpected": dict(run.side.unexpected),
        **_observed(run.samples, run.after),
        "findings": [_finding(finding) for finding in findings],
        "problems": problems(
            findings, [*outcomes, *file_outcomes], run.side.unexpected, run.samples, run.after
        ),
        "timeline": _timeline(run.samples, outcomes, run.start_s),
    }
    return make_record(parameters, metrics)


def _load(
    service: SoakedService,
    texts: Sequence[str],
    check: ReplyCheck,
    minutes: float,
    rate: float,
    seed: int,
    display: Display,
) -> _Run:
    """Sends the load in phases, and waits until the cache has expired."""
    url, key = service.url, service.api_key
    calls = interactive_calls(len(texts), seed)
    interactive = Load(url, key, texts, check, rate, seed, calls=calls)
    calls = file_calls(len(texts), seed)
    files = Load(url, key, texts, check, 0, seed, calls=calls, max_open=_FILE_REQUESTS)
    side = SideClients(url, key)
    start_s, total_s = time.monotonic(), minutes * _MINUTE_S
    with Sampler(service) as sampler:
        with interactive, files, side:
            for phase_start_s, phase in phases(total_s):
                display.start_step(f"{service.topology}: {phase.name}")
                interactive.set_rate(rate * phase.rate)
                files.set_rate(_FILE_RATE if phase.bulk else 0)
                end_s = start_s + min(phase_start_s + phase.duration_s, total_s)
                service.wait(end_s - time.monotonic())
                display.finish_step(phase.duration_s, _progress(sampler, interactive, files))
        loaded = [*sampler.samples]
        display.start_step(f"{service.topology}: keys expire")
        service.wait(_SETTLE_S)
        return _Run(start_s, interactive, files, side, loaded, sampler.take())


def problems(
    findings: Sequence[Finding],
    outcomes: Sequence[Outcome],
    unexpected: Counter[str],
    samples: Sequence[Sample],
    after: Sample,
) -> list[str]:
    """Returns what is wrong with a run; empty if nothing is.

    Args:
        findings: the trends.
        outcomes: all requests of the loads.
        unexpected: replies of the side clients that were not as they should be.
        samples: taken under load.
        after: taken when all keys should have expired.
    """
    found = [f"{f.subject}: {f.quantity} grows" for f in leaks(findings)]
    figures = Figures.of(outcomes)._asdict()
    found += [f"{figures[kind]} requests {kind}" for kind in _BROKEN if figures[kind]]
    found += [f"{count} × {what}" for what, count in unexpected.items()]
    gap_s = max((b.time_s - a.time_s for a, b in pairwise(samples)), default=0.0)
    if gap_s > _MAX_GAP_S:
        found.append(f"nothing was sampled for {gap_s:.0f} s: the machine or this program paused")
    sizes = [sample.cache["bytes"] for sample in samples if sample.cache]
    if sizes and max(sizes) > CACHE_MAX_BYTES * 1.1:
        found.append(f"Valkey held {max(sizes) / 2**20:.0f} MiB")
    if after.cache.get("expiring"):
        found.append(f"{after.cache['expiring']} keys did not expire")
    return found


def _progress(sampler: Sampler, interactive: Load, files: Load) -> str:
    last = sampler.samples[-1]
    figures = Figures.of([*interactive.ledger.outcomes, *files.ledger.outcomes])
    own = sum(process.own for process in last.processes) / 2**20
    broken = figures.failed + figures.lost + figures.wrong
    return (
        f"{last.time_s / _MINUTE_S:.0f} min: {interactive.sent_texts + files.sent_texts:,} texts, "
        f"{broken} broken, {figures.refused} refused, p99 {figures.p99_ms:.0f} ms, "
        f"{_replicas(last)} replicas, {own:.0f} MiB, {last.cache.get('keys', 0):,} keys, "
        f"load {last.load_average}"
    )


def _replicas(sample: Sample) -> int:
    return sum(process.role in ("Embedder", "EmbedServer") for process in sample.processes)


def _observed(samples: Sequence[Sample], after: Sample) -> dict[str, Any]:
    """Returns the extremes of the samples."""
    replicas = [_replicas(sample) for sample in samples]
    changes = sum(a != b for a, b in pairwise(replicas))
    states = [sample.cache for sample in samples if sample.cache]
    averages = [sample.load_average for sample in samples]
    return {
        "samples": len(samples),
        "replicas": [min(replicas), max(replicas)],
        "replica_changes": changes,
        "replica_lives": len(
            {p.pid for s in samples for p in s.processes if p.role in ("Embedder", "EmbedServer")}
        ),
        "cache_max_keys": max((state["keys"] for state in states), default=0),
        "cache_max_mib": round(max((s["bytes"] for s in states), default=0) / 2**20, 1),
        "cache_expired": states[-1]["expired"] if states else 0,
        "cache_evicted": states[-1]["evicted"] if states else 0,
        "keys_after": after.cache.get("keys", 0),
        "expiring_after": after.cache.get("expiring", 0),
        "load_average": [min(averages), max(averages)],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    trend = finding.trend
    return {
        "subject": finding.subject,
        "quantity": finding.quantity,
        "unit": finding.unit,
        "lives": finding.lives,
        "first": round(finding.first, 2),
        "last": round(finding.last, 2),
        "slope": round(trend.slope, 3),
        "error": round(trend.error, 3),
        "samples": trend.samples,
        "effective_samples": round(trend.effective_samples, 1),
        "verdict": str(finding.verdict),
        "own": finding.is_own,
    }


def _timeline(
    samples: Sequence[Sample], outcomes: Sequence[Outcome], start_s: float
) -> dict[str, Any]:
    thinned = samples[:: -(-len(samples) // _MAX_POINTS)]
    p99_ms = p99_by_minute(outcomes, start_s)
    return {
        "time_s": [sample.time_s for sample in thinned],
        "replicas": [_replicas(sample) for sample in thinned],
        "memory_mib": series_of(thinned),
        "pss_mib": [round(sum(p.pss for p in s.processes) / 2**20, 1) for s in thinned],
        "keys": [sample.cache.get("keys", 0) for sample in thinned],
        "load_average": [sample.load_average for sample in thinned],
        "p99_ms": [[minute, round(value, 1)] for minute, value in p99_ms.items()],
    }
