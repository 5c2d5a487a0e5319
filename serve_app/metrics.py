"""The service's metrics: counts in a `Meter` → `export` → Ray's metrics → Prometheus.

A call into Ray's metrics takes some microseconds, too slow for each step of each request. The code
counts in a `Meter` instead, and each deployment exports its meter every second.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from serve_app.totals import Totals

_EXPORT_INTERVAL_S = 1.0
#: Ray puts it before the name of each metric.
RAY_PREFIX = "ray_"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """The declaration of one metric. Prometheus sees the name after `RAY_PREFIX`."""

    name: str
    description: str  #: names the unit
    tags: tuple[str, ...] = ()


REQUESTS = Metric(
    "embedserve_requests", "Requests that run a model, by HTTP status.", ("status", "model")
)
TEXTS = Metric("embedserve_texts", "Texts of successful requests.", ("model",))
TOKENS = Metric("embedserve_tokens", "Tokens of successful requests.", ("model",))
CACHED_TEXTS = Metric(
    "embedserve_cached_texts",
    "Texts of successful requests that the cache served, or that joined another request.",
    ("model",),
)
STAGE_SECONDS = Metric(
    "embedserve_stage_seconds",
    "Seconds of request time by stage: `cache`, `queue`, `tokenize`, `infer`, and in all: `total`.",
    ("stage", "model"),
)
BATCHES = Metric("embedserve_batches", "Batches computed by the model.", ("model",))
BATCH_TEXTS = Metric("embedserve_batch_texts", "Texts in computed batches.", ("model",))
BATCH_TOKENS = Metric(
    "embedserve_batch_tokens", "Tokens in computed batches, without padding.", ("model",)
)
PADDED_TOKENS = Metric(
    "embedserve_padded_tokens", "Tokens in computed batches, padding included.", ("model",)
)
BATCH_SECONDS = Metric("embedserve_batch_seconds", "Seconds of computing batches.", ("model",))
BATCH_FAILURES = Metric(
    "embedserve_batch_failures", "Failed batches; each is bisected.", ("model",)
)
REFUSED = Metric(
    "embedserve_refused",
    "Groups of texts that an Embedder rejected, by error code and lane.",
    ("code", "lane", "model"),
)
FALLBACK_TEXTS = Metric(
    "embedserve_fallback_texts",
    "Texts that another model of a chain computed, by that model and the model that was asked for.",
    ("answered_by", "model"),
)
CACHE_HITS = Metric(
    "embedserve_cache_hits", "Texts found in the cache, by tier (`l1`, `l2`).", ("tier", "model")
)
CACHE_MISSES = Metric(
    "embedserve_cache_misses", "Texts that a process didn't find in its tiers.", ("model",)
)
COALESCED = Metric(
    "embedserve_coalesced", "Cache misses that joined a request in flight.", ("model",)
)
CACHE_BYTES = Metric("embedserve_cache_bytes", "Bytes in the L1 cache, overhead included.")
CACHE_ENTRIES = Metric("embedserve_cache_entries", "Values in the L1 cache.")
CACHE_EVICTIONS = Metric("embedserve_cache_evictions", "Values evicted from the L1 cache.")
L2_SECONDS = Metric("embedserve_l2_seconds", "Seconds of reads from the L2 cache.")
L2_READS = Metric("embedserve_l2_reads", "Reads from the L2 cache, each of many texts.")
L2_FAILURES = Metric(
    "embedserve_l2_failures",
    "Failed calls to the L2 cache (reads, writes, probes), by reason.",
    ("reason",),
)
L2_WRITTEN = Metric("embedserve_l2_written", "Values written to the L2 cache.", ("model",))
L2_WRITE_DROPS = Metric(
    "embedserve_l2_write_drops",
    "Values that were not written to the L2 cache, by reason: `full` queue, cache `down`, or the "
    "failure.",
    ("reason", "model"),
)
L2_UP = Metric("embedserve_l2_up", "1 while the L2 cache is up and accepts writes, else 0.")
IMAGE_FETCHES = Metric(
    "embedserve_image_fetches",
    "Images fetched from URLs, by outcome: `ok`, `refused` by the settings, `timeout`, "
    "`connection`, `status`, `media_type`, or `too_large`.",
    ("outcome", "model"),
)
KEY_REQUESTS = Metric(
    "embedserve_key_requests",
    "Requests with an API key, by the key's name and outcome: `admitted`, `model_not_allowed`, "
    "`rate_limit_exceeded`, or `insufficient_quota` once its budget is used up.",
    ("key", "outcome", "model"),
)
KEY_TOKENS = Metric(
    "embedserve_key_tokens",
    "Tokens of requests with an API key, by the key's name.",
    ("key", "model"),
)
COST_NANO_USD = Metric(
    "embedserve_cost_nanodollars",
    "Cost of successful requests of models that have a price, in billionths of a US dollar, by the "
    "name of the API key.",
    ("key", "model"),
)
SAVED_NANO_USD = Metric(
    "embedserve_saved_nanodollars",
    "What such requests would have cost in addition without the cache, in billionths of a US "
    "dollar.",
    ("key", "model"),
)
QUOTA_FALLBACKS = Metric(
    "embedserve_quota_fallbacks",
    "Requests whose quota was counted in memory because the shared server failed, by reason.",
    ("reason",),
)
LEDGER_FAILURES = Metric(
    "embedserve_ledger_failures",
    "Failed calls to the shared server that holds the costs, by reason; writes are repeated.",
    ("reason",),
)
QUEUED_TOKENS = Metric(
    "embedserve_queued_tokens",
    "Tokens queued or being computed, by lane (`interactive`, `bulk`), task and model.",
    ("lane", "task", "model"),
)
BUDGET_TOKENS = Metric(
    "embedserve_budget_tokens", "Current limit of padded tokens in a batch.", ("model",)
)
OLDEST_INTERACTIVE = Metric(
    "embedserve_oldest_interactive_seconds",
    "Seconds for which the oldest interactive text has waited for a batch; 0: none waits.",
)
BUSY_SHARE = Metric(
    "embedserve_engine_busy_share",
    "Share of the time, from 0 to 1, in which a process computed at least one batch.",
)
CAPACITY = Metric(
    "embedserve_capacity_tokens_per_second",
    "Tokens per second, without padding, that a replica computes of a model in full batches.",
    ("model",),
)
STARTUP_SECONDS = Metric(
    "embedserve_startup_seconds",
    "Seconds from the start of a replica to its first vector, by step: `process`, `check`, `load`, "
    "`warm_up`, `other`.",
    ("step",),
)
MODEL_LOADED = Metric(
    "embedserve_model_loaded",
    "1 while the model is in the memory of a replica, else 0.",
    ("model",),
)
VECTOR_DRIFT = Metric(
    "embedserve_vector_drift",
    "Largest 1 - cosine of the canary's vectors and its first ones on the machine.",
    ("model",),
)
PROVIDER_CALLS = Metric(
    "embedserve_provider_calls",
    "Calls of providers by outcome: `ok`, `refused` (400), `rate_limited` (429), `unavailable` (no "
    "reply, 5xx), `failed` (key, wrong reply), `too_late` (deadline), `cancelled`.",
    ("outcome", "model"),
)
PROVIDER_RETRIES = Metric(
    "embedserve_provider_retries", "Calls of providers that were repeated.", ("model",)
)
PROVIDER_SECONDS = Metric(
    "embedserve_provider_seconds", "Seconds of successful calls of providers.", ("model",)
)
PROVIDER_TEXTS = Metric(
    "embedserve_provider_texts", "Texts in successful calls of providers.", ("model",)
)
PROVIDER_TOKENS = Metric(
    "embedserve_provider_tokens",
    "Tokens that providers bill, as they count them; estimated where they don't say.",
    ("model",),
)
PROVIDER_NANO_USD = Metric(
    "embedserve_provider_nanodollars",
    "Price of the tokens that providers bill, in nano-dollars.",
    ("model",),
)
PROVIDER_CALLS_IN_FLIGHT = Metric(
    "embedserve_provider_calls_in_flight",
    "Calls of providers in flight, those that wait for a retry included.",
    ("model",),
)
PROVIDER_UP = Metric(
    "embedserve_provider_up",
    "1 while the model's provider gets calls, 0 while its circuit breaker is open.",
    ("model",),
)
_SCALING = ("application", "deployment")
AUTOSCALING_TARGET_REPLICAS = Metric(
    "embedserve_autoscaling_target_replicas", "Replicas that the policy asks for.", _SCALING
)
AUTOSCALING_NEEDED_REPLICAS = Metric(
    "embedserve_autoscaling_needed_replicas",
    "Replicas that each term of the policy needs: `arrivals`, `queue`, `bulk`, `objective`.",
    (*_SCALING, "term"),
)
AUTOSCALING_DECIDED_BY = Metric(
    "embedserve_autoscaling_decided_by",
    "1 for what decides, else 0: a term, the `bounds`, a rule of the way down, or lost `reports`.",
    (*_SCALING, "term"),
)
PROCESS_CPU_SECONDS = Metric(
    "embedserve_process_cpu_seconds", "CPU time of the process since its start, in seconds."
)
PROCESS_MEMORY_BYTES = Metric(
    "embedserve_process_memory_bytes", "Resident memory of the process, in bytes."
)

#: All other metrics are counters.
GAUGES = {
    *(CACHE_BYTES, CACHE_ENTRIES, L2_UP, QUEUED_TOKENS, BUDGET_TOKENS, MODEL_LOADED),
    *(OLDEST_INTERACTIVE, BUSY_SHARE, CAPACITY, STARTUP_SECONDS),
    *(PROVIDER_CALLS_IN_FLIGHT, PROVIDER_UP, VECTOR_DRIFT),
    *(PROCESS_CPU_SECONDS, PROCESS_MEMORY_BYTES, AUTOSCALING_TARGET_REPLICAS),
    *(AUTOSCALING_NEEDED_REPLICAS, AUTOSCALING_DECIDED_BY),
}

#: The current value of each gauge; of a gauge with tags, the value for the values of its tags.
Gauges = Mapping[Metric, float | Mapping[Any, float]]
#: The value of each counter, by metric and the values of its tags.
Counts = Mapping[tuple[Metric, tuple[str, ...]], float]


class Meter:
    """Counters of one process, since the last drain and in total. Belongs to one event loop."""

    def __init__(self) -> None:
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._models: dict[str, ModelMeter] = {}
        self._drained = defaultdict[tuple[Metric, tuple[str, ...]], float](float)
        self._baseline = Totals()

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Adds to a counter.

        Args:
            metric: the metric to count.
            amount: at least 0.
            tags: values in the order of `metric.tags`.
        """
        self._pending[metric, tags] += amount

    def for_model(self, model: str) -> "ModelMeter":
        """Returns the meter that counts for one model."""
        if model not in self._models:
            self._models[model] = ModelMeter(self, model)
        return self._models[model]

    def drain(self) -> Counts:
        """Returns the counts since the previous call."""
        counts = self._undrained()
        self._pending.clear()
        for meter in self._models.values():
            meter.clear()
        for key, amount in counts.items():
            self._drained[key] += amount
        return counts

    def counts(self) -> Counts:
        """Returns the counts since the start."""
        self.drain()
        return self._drained

    def value(self, metric: Metric, *tags: str) -> float:
        """Returns a counter's value since the start. Doesn't affect `drain`."""
        return self._drained.get((metric, tags), 0.0) + self._undrained().get((metric, tags), 0.0)

    def totals(self) -> Totals:
        """Returns the totals since the last `reset`."""
        return self._lifetime_totals().minus(self._baseline)

    def reset(self) -> None:
        """Resets `totals` to zero. Doesn't affect `drain`, so exported counters keep rising."""
        self._baseline = self._lifetime_totals()

    def _undrained(self) -> Counts:
        """Returns the counts since the last `drain`, of all models."""
        counts = self._pending.copy()
        for meter in self._models.values():
            for key, amount in meter.counts().items():
                counts[key] += amount
        return counts

    def _lifetime_totals(self) -> Totals:
        sums = defaultdict[Metric, float](float)
        succeeded = 0.0
        for counts in (self._drained, self._undrained()):
            for (metric, tags), amount in counts.items():
                if metric is not STAGE_SECONDS or tags[0] == "total":
                    sums[metric] += amount
                if metric is REQUESTS and tags[0] == "200":
                    succeeded += amount
        return Totals(
            sums[REQUESTS],
            sums[REQUESTS] - succeeded,
            sums[TEXTS],
            sums[CACHED_TEXTS],
            sums[TOKENS],
            sums[STAGE_SECONDS],
            sums[COST_NANO_USD],
            sums[SAVED_NANO_USD],
        )


class ModelMeter:
    """Adds to the counters of a process for one model, whose name is the last tag of each."""

    def __init__(self, process: Meter, model: str) -> None:
        self.process = process  #: the meter of the process, which drains this one
        self.model = model
        self._pending = defaultdict[tuple[Metric, tuple[str, ...]], float](float)

    def add(self, metric: Metric, amount: float = 1, *tags: str) -> None:
        """Adds to a counter; see `Meter.add`.

        Args:
            metric: the metric to count; the last of its tags is `model`.
            amount: at least 0.
            tags: values in the order of `metric.tags`, without the model.
        """
        self._pending[metric, tags] += amount

    def counts(self) -> Counts:
        """Returns the counts since the last `clear`, with the model among the tags."""
        return {
            (metric, (*tags, self.model)): amount
            for (metric, tags), amount in self._pending.items()
        }

    def clear(self) -> None:
        """Begins at zero."""
        self._pending.clear()


def process_gauges() -> Gauges:
    """Returns CPU time and memory of this process."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return {
            PROCESS_CPU_SECONDS: times.user + times.system,
            PROCESS_MEMORY_BYTES: float(process.memory_info().rss),
        }


async def export(meter: Meter, gauges: Callable[[], Gauges] = dict) -> None:
    """Exports a meter's counts and the current gauges to Ray every second until cancelled.

    Those of the process are added.
    """
    from ray.serve import metrics

    instruments: dict[Metric, Any] = {}

    def instrument(metric: Metric) -> Any:
        if metric not in instruments:
            kind: Any = metrics.Gauge if metric in GAUGES else metrics.Counter
            instruments[metric] = kind(metric.name, metric.description, metric.tags)
        return instruments[metric]

    while True:
        for (metric, tags), amount in meter.drain().items():
            if amount > 0:
                instrument(metric).inc(amount, dict(zip(metric.tags, tags, strict=True)))
        for metric, value in {**gauges(), **process_gauges()}.items():
            if isinstance(value, Mapping):
                for tags, tagged in value.items():
                    instrument(metric).set(tagged, dict(zip(metric.tags, tags, strict=True)))
            else:
                instrument(metric).set(value)
        await asyncio.sleep(_EXPORT_INTERVAL_S)
