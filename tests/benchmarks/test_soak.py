"""The soak: trends and their errors, what counts as a leak, the load, and the record's table."""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.faults.ledger import Kind, Outcome
from benchmarks.service_processes import role
from benchmarks.soak.phases import CYCLE, CYCLE_S, file_calls, interactive_calls, phase_at, phases
from benchmarks.soak.plot import draw
from benchmarks.soak.run import problems
from benchmarks.soak.sampler import FileCount, ProcessSample, Sample, count_files, sample_processes
from benchmarks.soak.table import summary, table
from benchmarks.soak.trend import Segment, fit_trend
from benchmarks.soak.verdict import MIB, Finding, Verdict, find, leaks, p99_by_minute

HOURS = np.arange(0, 0.5, 1 / 360)  # half an hour, a sample every ten seconds


def noise(rng: np.random.Generator, correlation: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Returns noise of unit variance in which neighbors correlate."""
    values = rng.normal(size=HOURS.size)
    for i in range(1, values.size):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * values[i]
    return values


def trend(*values: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    found = fit_trend([Segment(HOURS, series) for series in values])
    assert found is not None
    return found


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_noise_is_seldom_taken_for_growth(correlation: float) -> None:
    rng = np.random.default_rng(7)
    found = [trend(noise(rng, correlation)) for _ in range(200)]
    # Of independent samples 2.3 % are above two standard errors.
    assert sum(one.is_positive for one in found) <= 0.08 * len(found)


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_a_leak_of_known_size_is_found(correlation: float) -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        found = trend(12 * HOURS + 0.5 * noise(rng, correlation))
        assert found.is_positive
        assert abs(found.slope - 12) < 5 * found.error
        assert found.slope < found.upper_bound < 24


def test_correlated_samples_count_less() -> None:
    rng = np.random.default_rng(7)
    independent, correlated = trend(noise(rng, 0)), trend(noise(rng, 0.9))
    assert correlated.effective_samples < 0.3 * independent.effective_samples
    assert correlated.error > 2 * independent.error


@pytest.mark.parametrize("segments", [2, 6])
def test_segments_share_a_slope_and_have_levels_of_their_own(segments: int) -> None:
    rng = np.random.default_rng(7)
    levels = 100 * rng.normal(size=segments)
    growing = trend(*(level + 5 * HOURS + 0.1 * noise(rng, 0.5) for level in levels))
    flat = trend(*(level + 0.1 * noise(rng, 0.5) for level in levels))
    assert growing.slope == pytest.approx(5, abs=5 * growing.error)
    assert growing.is_positive
    assert abs(flat.slope) < 3 * flat.error


def test_an_exact_line_has_no_error() -> None:
    assert trend(3 * HOURS)[:2] == pytest.approx((3, 0), abs=1e-9)
    assert not trend(np.full(HOURS.size, 7.0)).is_positive


def test_a_few_samples_have_no_trend() -> None:
    assert fit_trend([]) is None
    assert fit_trend([Segment(HOURS[:4], HOURS[:4])]) is None
    assert fit_trend([Segment(np.zeros(9), HOURS[:9])]) is None


def process(name: str, pid: int, mib: float, **changes: Any) -> ProcessSample:
    size = int(mib * MIB)
    sample = ProcessSample(pid, name, 10.0, size, size * 2, size, descriptors=40, threads=20)
    return sample._replace(**changes)


def samples(
    *processes: Callable[[float], ProcessSample | None],
    keys: Callable[[float], int] = lambda t: 9,
    data_mib: Callable[[float], float] = lambda t: 1,
) -> list[Sample]:
    """Returns the samples of half an hour; each function returns a process at an hour."""
    return [
        Sample(
            round(hour * 3600, 1),
            tuple(found for get in processes if (found := get(hour)) is not None),
            {kind: FileCount(10, MIB) for kind in ("service", "ray", "ray logs")},
            {
                **{"keys": keys(hour), "expiring": 5, "expired": 1, "evicted": 0},
                "bytes": int(data_mib(hour) * MIB),
            },
            1.0,
        )
        for hour in HOURS
    ]


def by_series(findings: list[Finding]) -> dict[tuple[str, str], Finding]:
    return {(finding.subject, finding.quantity): finding for finding in findings}


def test_the_process_that_leaks_is_named() -> None:
    rng = np.random.default_rng(7)
    run = samples(
        lambda t: process("Ingress", 1, 100 + 30 * t + rng.normal()),
        lambda t: process("Embedder", 2, 300 + rng.normal(), descriptors=40 + int(30 * t)),
        lambda t: process("CacheLookup", 3, 80 + rng.normal(), threads=20 + int(30 * t)),
        lambda t: process("gcs_server", 4, 60 + 30 * t),
        keys=lambda t: 100 + int(5000 * t),
    )
    findings = find(run, [], 0, 300)
    assert {(leak.subject, leak.quantity) for leak in leaks(findings)} == {
        ("Ingress", "memory"),
        ("Embedder", "descriptors"),
        ("CacheLookup", "threads"),
        ("Valkey", "keys"),
    }
    found = by_series(findings)
    assert found["Ingress", "memory"].trend.slope == pytest.approx(30, abs=6)
    assert found["Embedder", "memory"].verdict is not Verdict.GROWS
    assert found["gcs_server", "memory"].verdict is Verdict.GROWS  # told, but Ray's


def test_valkey_keeps_the_pages_of_the_most_data_that_it_held() -> None:
    def data_mib(hour: float) -> float:
        return 5 + 40 * hour if int(hour * 20) % 2 else 1

    def memory_mib(hour: float) -> float:
        return max(data_mib(t) for t in HOURS if t <= hour) + 2

    for leak, expected in ((0, Verdict.FLAT), (30, Verdict.GROWS)):
        run = samples(
            lambda t, leak=leak: process("Valkey", 1, memory_mib(t) + leak * t),  # type: ignore[misc]
            data_mib=data_mib,
        )
        assert by_series(find(run, [], 0, 0))["Valkey", "memory"].verdict is expected


def test_the_warm_up_is_left_out() -> None:
    run = samples(lambda t: process("Ingress", 1, 100 + 300 * min(t, 0.1)))
    whole, judged = (by_series(find(run, [], 0, s))["Ingress", "memory"] for s in (0, 361))
    assert (whole.first, judged.first) == pytest.approx((114.6, 130), abs=0.1)
    assert judged.verdict is Verdict.FLAT
    # A line does not fit the whole run: whether memory goes on growing is not known.
    assert whole.verdict is Verdict.UNSURE


def test_replicas_that_come_and_go_are_compared_with_each_other() -> None:
    def replica(growth: float) -> Callable[[float], ProcessSample | None]:
        # Lives of three minutes: within one, memory rises while caches fill.
        return lambda t: process("Embedder", int(t * 20), 200 + 100 * (t % 0.05) + growth * t)

    for growth, expected in ((0, Verdict.FLAT), (60, Verdict.GROWS)):
        found = by_series(find(samples(replica(growth)), [], 0, 0))
        assert ("Embedder", "memory") not in found
        assert found["Embedder, at its end", "memory"].verdict is expected


def test_a_slope_below_the_tolerance_is_small() -> None:
    found = by_series(find(samples(lambda t: process("Ingress", 1, 100 + 2 * t)), [], 0, 0))
    assert found["Ingress", "memory"].verdict is Verdict.SMALL


def outcomes(latency_s: Callable[[float], float]) -> list[Outcome]:
    """Returns one request each second of half an hour, which starts at the time 50."""
    return [
        Outcome(str(s), 50.0 + s, 50.0 + s + latency_s(s / 3600), Kind.RIGHT) for s in range(1800)
    ]


def test_minutes_have_the_p99_of_their_right_requests() -> None:
    requests = [*outcomes(lambda t: 0.02), Outcome("lost", 60.0, 90.0, Kind.LOST)]
    assert p99_by_minute(requests, 50.0) == pytest.approx(dict.fromkeys(range(30), 20.0))


def test_a_p99_that_rises_is_a_leak_and_one_that_follows_the_phases_is_none() -> None:
    rising = outcomes(lambda t: 0.1 + 0.2 * t)
    assert [f.quantity for f in leaks(find([], rising, 50.0, 0))] == ["p99"]
    cyclic = outcomes(lambda t: 0.3 if phase_at(t * 3600).bulk else 0.1)
    assert not leaks(find([], cyclic, 50.0, 0))
    both = outcomes(lambda t: (0.3 if phase_at(t * 3600).bulk else 0.1) + 0.2 * t)
    assert [f.quantity for f in leaks(find([], both, 50.0, 0))] == ["p99"]


def test_phases_repeat_until_the_end() -> None:
    found = [*phases(CYCLE_S + 1)]
    assert [phase.name for _, phase in found] == [*(p.name for p in CYCLE), CYCLE[0].name]
    for start_s, phase in found:
        assert phase_at(start_s) is phase
        assert phase_at(start_s + phase.duration_s - 0.1) is phase


@pytest.mark.parametrize("make", [interactive_calls, file_calls])
def test_calls_have_new_texts_and_known_ones(make: Callable[..., Any]) -> None:
    calls = [*islice(make(100, 3), 300)]
    assert [*islice(make(100, 3), 300)] == calls
    new = [text for call in calls for text in call.unknown]
    assert len({*new}) == len(new) > 100
    known = Counter(index for call in calls for index in call.texts)
    assert known
    assert max(known) < 100
    assert {call.api.name for call in calls} == {"openai", "tei", "cohere", "ollama", "sidecar"}


def test_files_are_counted_by_kind(tmp_path: Path) -> None:
    session, cache = "ray/session_1", "disk/cache"
    for name in (
        f"{cache}/a",
        f"{cache}/d.rdb",
        f"{session}/sockets/s",
        f"{session}/logs/l/l",
        "k",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to("/")
    found = count_files(tmp_path)
    assert found["ray logs"].files == 2
    assert found["service"].size >= 10
    # `disk`, `disk/cache`, `ray` and the link are entries too.
    assert {kind: counts.files for kind, counts in found.items()} == {
        "service": 6,
        "dump": 1,
        "ray": 4,
        "ray logs": 2,
    }


def test_a_process_is_sampled_and_has_a_role() -> None:
    own = psutil.Process()
    (sample,) = sample_processes([own])
    assert sample.pid == own.pid
    assert sample.role == role(own)
    assert 0 < sample.own <= sample.rss
    assert min(sample.descriptors, sample.threads, sample.age_s) > 0


def test_what_is_broken_is_a_problem() -> None:
    fine = samples(lambda t: process("Ingress", 1, 100))
    after = fine[-1]._replace(cache={"keys": 3, "expiring": 0})
    assert problems([], outcomes(lambda t: 0.1), Counter(), fine, after) == []
    lost = [Outcome("1", 0.0, 30.0, Kind.LOST)]
    kept = after._replace(cache={"keys": 3, "expiring": 2})
    full = [sample._replace(cache={**sample.cache, "bytes": 900 * MIB}) for sample in fine]
    paused = [*full[:10], *full[20:]]
    assert problems([], lost, Counter({"scrapes: another status": 2}), paused, kept) == [
        "1 requests lost",
        "2 × scrapes: another status",
        "nothing was sampled for 110 s: the machine or this program paused",
        "Valkey held 900 MiB",
        "2 keys did not expire",
    ]


RECORD: dict[str, Any] = {
    "topology": "separate",
    "minutes": 30,
    "warm_up_minutes": 7.5,
    "texts": 12_345,
    "interactive": {"sent": 1000, "refused": 1, "failed": 0, "lost": 0, "wrong": 0},
    "files": {"sent": 500, "refused": 2, "failed": 0, "lost": 0, "wrong": 0},
    "replicas": [1, 3],
    "replica_changes": 12,
    "replica_lives": 7,
    "cache_max_keys": 4321,
    "cache_expired": 10_000,
    "cache_evicted": 0,
    "keys_after": 2,
    "load_average": [1.5, 4.5],
    "findings": [
        {
            **{"subject": "Ingress", "quantity": "memory", "unit": "MiB/h", "lives": 1},
            **{"first": 101.2, "last": 101.4, "slope": 0.41, "error": 0.3, "verdict": "flat"},
            "own": True,
        },
    ],
    "timeline": {
        "time_s": [0.0, 600.0, 1200.0],
        "replicas": [1, 3, 1],
        "memory_mib": {"Ingress": [90.0, 101.0, 101.5], "raylet": [50.0, 50.0, 50.0]},
        "p99_ms": [[0, 80.0], [1, 90.0]],
    },
}


def test_the_table_has_each_trend_with_its_error() -> None:
    assert "| Ingress | memory | 101.2 | 101.4 | +0.41 ± 0.3 MiB/h | flat |" in table(RECORD)
    assert "1,500 requests, 12,345 texts; 3 refused, 0 failed" in summary(RECORD)


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(RECORD, tmp_path / "pictures" / "soak.png")
    assert (tmp_path / "pictures" / "soak.png").stat().st_size > 10_000
