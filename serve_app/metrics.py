"""The declarations of the service's metrics. `meter.py` counts and exports them."""

from dataclasses import dataclass

#: Ray puts it before the name of each metric.
RAY_PREFIX = "ray_"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """The declaration of one metric. Prometheus sees the name after `RAY_PREFIX`."""

    name: str
    description: str  #: names the unit
    tags: tuple[str, ...] = ()
    #: Upper bounds of the buckets of a histogram, ascending; empty: the metric is none.
    buckets: tuple[float, ...] = ()


#: From the least time of a reply to the longest that a request may take by default. Neighbours
#: differ by a factor of at most 2, and by 3 above 10 s, which bounds the error of a quantile.
_SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3),
    *(0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0),
)

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
REQUEST_DURATION = Metric(
    "embedserve_request_duration_seconds",
    "Seconds from the end of a request's body until its reply is ready, of requests that run a "
    "model, failed ones included.",
    ("route", "lane", "model"),
    _SECONDS,
)
STAGE_SECONDS = Metric(
    "embedserve_stage_seconds",
    "Seconds of successful requests by stage: `cache`, `queue`, `tokenize`, `infer`, `load`.",
    ("stage", "model"),
)
QUEUE_DURATION = Metric(
    "embedserve_queue_duration_seconds",
    "Seconds from the arrival of a group of texts at the scheduler until its first batch or call "
    "starts, or until its time is up.",
    ("lane", "model"),
    _SECONDS,
)
BATCH_DURATION = Metric(
    "embedserve_batch_duration_seconds", "Seconds of computing a batch.", ("model",), _SECONDS
)
BATCH_SIZE = Metric(
    "embedserve_batch_size_texts",
    "Texts in a computed batch.",
    ("model",),
    (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),  # up to the largest setting
)
TEXT_LENGTH = Metric(
    "embedserve_text_length_tokens",
    "Tokens of a computed text, after truncation and without padding.",
    ("model",),
    (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),  # as models' limits
)
PADDED_TOKENS = Metric(
    "embedserve_padded_tokens", "Tokens in computed batches, padding included.", ("model",)
)
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
SPILLED_TEXTS = Metric(
    "embedserve_spilled_texts",
    "Texts that another model of a chain computed because the one that was asked for had too much "
    "to do, by both models.",
    ("answered_by", "model"),
)
CANARY_REQUESTS = Metric(
    "embedserve_canary_requests",
    "Requests for an alias that has a canary, by the model that answers.",
    ("alias", "model"),
)
_SHADOW = ("alias", "model")
SHADOW_TEXTS = Metric(
    "embedserve_shadow_texts",
    "Texts for the shadow of an alias, by outcome: `compared`, or dropped: `full` queue, "
    "`timeout`, `overloaded`, `failed`.",
    ("outcome", *_SHADOW),
)
SHADOW_TOKENS = Metric(
    "embedserve_shadow_tokens",
    "Tokens that were computed for a comparison, by each of both models.",
    _SHADOW,
)
SHADOW_SECONDS = Metric(
    "embedserve_shadow_seconds", "Seconds of the batches with these tokens.", _SHADOW
)
SHADOW_NANO_USD = Metric(
    "embedserve_shadow_nanodollars",
    "What the compared texts cost without a cache, by each of both models that has a price, in "
    "billionths of a US dollar.",
    _SHADOW,
)
SHADOW_SAMPLE_TEXTS = Metric(
    "embedserve_shadow_sample_texts", "Texts in the sample that is compared.", _SHADOW
)
SHADOW_NEIGHBOR_AGREEMENT = Metric(
    "embedserve_shadow_neighbor_agreement",
    "Mean share, from 0 to 1, of the nearest neighbors of a text that both models have in common, "
    "by their number: 10 or 1.",
    ("neighbors", *_SHADOW),
)
SHADOW_RANK_CORRELATION = Metric(
    "embedserve_shadow_rank_correlation",
    "Spearman's rank correlation, from -1 to 1, of the similarities of pairs of texts.",
    _SHADOW,
)
SHADOW_COSINE = Metric(
    "embedserve_shadow_cosine",
    "Mean cosine of both vectors of a text, if it is asked for.",
    _SHADOW,
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
LOOKUP_DURATION = Metric(
    "embedserve_lookup_duration_seconds",
    "Seconds of a read from a cache tier (`l2`), each of many texts.",
    ("tier",),
    # From a read through a local socket to the longest `cache.timeout_s`.
    (0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 10),
)
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
QUEUED_TEXTS = Metric(
    "embedserve_queued_texts",
    "Texts that wait for a batch or a call, by lane, task and model.",
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
SPANS_EXPORTED = Metric(
    "embedserve_spans_exported", "Spans of traces that the collector has taken."
)
SPANS_DROPPED = Metric(
    "embedserve_spans_dropped",
    "Spans of traces that were dropped, by reason: `full` queue, or the collector `failed`.",
    ("reason",),
)
PROCESS_CPU_SECONDS = Metric(
    "embedserve_process_cpu_seconds", "CPU time of the process since its start, in seconds."
)
PROCESS_MEMORY_BYTES = Metric(
    "embedserve_process_memory_bytes", "Resident memory of the process, in bytes."
)

#: All metrics that are neither gauges nor histograms are counters.
GAUGES = {
    *(CACHE_BYTES, CACHE_ENTRIES, L2_UP, QUEUED_TOKENS, QUEUED_TEXTS, BUDGET_TOKENS),
    MODEL_LOADED,
    *(OLDEST_INTERACTIVE, BUSY_SHARE, CAPACITY, STARTUP_SECONDS),
    *(PROVIDER_CALLS_IN_FLIGHT, PROVIDER_UP, VECTOR_DRIFT),
    *(SHADOW_SAMPLE_TEXTS, SHADOW_NEIGHBOR_AGREEMENT, SHADOW_RANK_CORRELATION, SHADOW_COSINE),
    *(PROCESS_CPU_SECONDS, PROCESS_MEMORY_BYTES, AUTOSCALING_TARGET_REPLICAS),
    *(AUTOSCALING_NEEDED_REPLICAS, AUTOSCALING_DECIDED_BY),
}

HISTOGRAMS = (
    REQUEST_DURATION,
    QUEUE_DURATION,
    BATCH_DURATION,
    BATCH_SIZE,
    TEXT_LENGTH,
    LOOKUP_DURATION,
)
