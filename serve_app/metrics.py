"""Every metric of the service, declared once; counted in plain Python, handed to Ray by the second.

A call into Ray's metrics costs some microseconds, too much for each step of each request. So the
rooms count into a `Meter`, and the deployments export what has come together.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_EXPORT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, as Prometheus sees it behind Ray's prefix `ray_`."""

    name: str
    description: str  #: with its unit
    tags: tuple[str, ...] = ()


REQUESTS = Metric(
    "embedserve_requests", "Embedding requests answered, by HTTP status.", ("status",)
)
TEXTS = Metric("embedserve_texts", "Texts in requests that were answered with vectors.")
TOKENS = Metric("embedserve_tokens", "Tokens in requests that were answered with vectors.")
CACHED_TEXTS = Metric("embedserve_cached_texts", "Those of them that nothing was computed for.")
STAGE_SECONDS = Metric(
    "embedserve_stage_seconds",
    "Seconds that requests spent in `cache`, `queue`, `tokenize`, `infer`, and in all (`total`).",
    ("stage",),
)
BATCHES = Metric("embedserve_batches", "Batches that the model computed.")
BATCH_TEXTS = Metric("embedserve_batch_texts", "Texts in these batches.")
BATCH_TOKENS = Metric("embedserve_batch_tokens", "Tokens in these batches, without padding.")
PADDED_TOKENS = Metric("embedserve_padded_tokens", "Tokens in these batches, with padding.")
BATCH_SECONDS = Metric("embedserve_batch_seconds", "Seconds that these batches took.")
BATCH_FAILURES = Metric("embedserve_batch_failures", "Batches that failed and were halved.")
REFUSED = Metric("embedserve_refused", "Groups of texts refused, by the error's code.", ("code",))
CACHE_HITS = Metric("embedserve_cache_hits", "Texts found in a tier, `l1` or `l2`.", ("tier",))
CACHE_MISSES = Metric("embedserve_cache_misses", "Texts that a process had to ask another for.")
COALESCED = Metric("embedserve_coalesced", "Texts of them that were on their way already.")
CACHE_BYTES = Metric("embedserve_cache_bytes", "Bytes that memory holds, with its bookkeeping.")
CACHE_ENTRIES = Metric("embedserve_cache_entries", "Values that memory holds.")
CACHE_EVICTIONS = Metric("embedserve_cache_evictions", "Values that left memory for room.")
L2_SECONDS = Metric("embedserve_l2_seconds", "Seconds that reads of the shared cache took.")
L2_READS = Metric("embedserve_l2_reads", "Reads of the shared cache, each for many texts.")
L2_FAILURES = Metric(
    "embedserve_l2_failures",
    "Calls to the shared cache that failed (reads, writes, probes), by reason.",
    ("reason",),
)
L2_WRITTEN = Metric("embedserve_l2_written", "Values written to the shared cache.")
L2_WRITE_DROPS = Metric(
    "embedserve_l2_write_drops",
    "Values that were not written to the shared cache: `full` queue, cache `down`, or what failed.",
    ("reason",),
)
L2_UP = Metric("embedserve_l2_up", "1 while the shared tier answers and takes values, else 0.")
KEY_REQUESTS = Metric(
    "embedserve_key_requests",
    "Requests that came with an API key, by its name and what became of them at the entrance: "
    "`admitted`, `model_not_allowed`, or `rate_limit_exceeded`.",
    ("key", "outcome"),
)
KEY_TOKENS = Metric(
    "embedserve_key_tokens", "Tokens that requests with an API key used, by its name.", ("key",)
)
QUOTA_FALLBACKS = Metric(
    "embedserve_quota_fallbacks",
    "Requests whose quota a process counted by itself, as the shared server could not, by reason.",
    ("reason",),
)
QUEUED_TOKENS = Metric("embedserve_queued_tokens", "Tokens that wait or are being computed now.")
BUDGET_TOKENS = Metric("embedserve_budget_tokens", "Padded tokens that a batch may hold now.")

#: Those that go up and down; the others only count up.
GAUGES = {CACHE_BYTES, CACHE_ENTRIES, L2_UP, QUEUED_TOKENS, BUDGET_TOKENS}


class Totals(NamedTuple):
    """What was answered since the start, or since somebody began to count anew."""

    requests: float = 0  #: refused ones, too
    failed: float = 0  #: those of them that got no vectors
    texts: float = 0
    cached_texts: float = 0  #: those of them that nothing was computed for
    tokens: float = 0
    seconds: float = 0.0  #: that requests took, all together

    def plus(self, other: "Totals", sign: int = 1) -> "Totals":
        """Both together; with -1 what this one has more."""
        return Totals(*(a + sign * b for a, b in zip(self, other, strict=True)))


class Meter:
    """What was counted since it was last drained, and in all. For one event loop."""

    def __init__(self) -> None:
        self._counts = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._drained = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._before = Totals()

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Counts; `tags` are values in the order of the metric's tags."""
        self._counts[metric, tags] += amount

    def drain(self) -> Mapping[tuple[Metric, tuple[str, ...]], float]:
        """What has come together, and begins anew."""
        counts, self._counts = self._counts, defaultdict(float)
        for key, amount in counts.items():
            self._drained[key] += amount
        return counts

    def totals(self) -> Totals:
        """Of all that was counted since `reset`."""
        return self._totals().plus(self._before, -1)

    def reset(self) -> None:
        """Has `totals` begin at zero; what Ray is handed goes on."""
        self._before = self._totals()

    def _totals(self) -> Totals:
        sums = defaultdict[Metric, float](float)
        answered = 0.0
        for counts in (self._drained, self._counts):
            for (metric, tags), amount in counts.items():
                if metric is not STAGE_SECONDS or tags == ("total",):
                    sums[metric] += amount
                if metric is REQUESTS and tags == ("200",):
                    answered += amount
        return Totals(
            sums[REQUESTS],
            sums[REQUESTS] - answered,
            sums[TEXTS],
            sums[CACHED_TEXTS],
            sums[TOKENS],
            sums[STAGE_SECONDS],
        )


async def export(meter: Meter, gauges: Callable[[], Mapping[Metric, float]] = dict) -> None:
    """Hands counts and gauges to Ray every second, for as long as the replica lives."""
    from ray.serve import metrics

    known: dict[Metric, Any] = {}

    def of(metric: Metric) -> Any:
        if metric not in known:
            kind: Any = metrics.Gauge if metric in GAUGES else metrics.Counter
            known[metric] = kind(metric.name, metric.description, metric.tags)
        return known[metric]

    while True:
        for (metric, tags), amount in meter.drain().items():
            if amount > 0:
                of(metric).inc(amount, dict(zip(metric.tags, tags, strict=True)))
        for metric, value in gauges().items():
            of(metric).set(value)
        await asyncio.sleep(_EXPORT_EVERY_S)
