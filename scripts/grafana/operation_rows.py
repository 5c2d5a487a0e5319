"""The rows on what serves the requests: cache, costs, autoscaling, replicas, providers, vectors."""

from scripts.grafana.panels import Panel, Query
from scripts.grafana.queries import (
    MODEL,
    PROCESS,
    PROCESS_NAME,
    PROCESSES,
    SCALING,
    gauge,
    or_zero,
    quantiles,
    rate,
)

_TEXTS = rate("texts_total")
_HITS = rate("cache_hits_total", by="tier")
_L2_FAILURES = rate("l2_failures_total", PROCESS, "reason")
_CACHE = (
    Panel(
        "Texts that the cache answers, by tier",
        "Shares of all texts. `joined`: computed for another request at the same time. Few `l1` "
        "and many `l2`: raise `l1_max_bytes`.",
        [
            Query(f"{_HITS} / on () group_left () {_TEXTS}", "{{tier}}"),
            Query(f"{or_zero(rate('coalesced_total'))} / {_TEXTS}", "joined"),
            Query(f"{or_zero(rate('cached_texts_total'))} / {_TEXTS}", "all"),
        ],
        "percentunit",
        maximum=1,
    ),
    Panel(
        "Time of a look-up by tier",
        "`l2` near `cache.timeout_s`: the server or the network is slow.",
        quantiles("lookup_duration_seconds", PROCESS, "tier"),
        "s",
    ),
    Panel(
        "Shared cache",
        "As each process sees it. While it is down, texts are computed that it holds.",
        [Query(gauge("min", PROCESSES, "l2_up", PROCESS), PROCESS_NAME)],
        kind="state-timeline",
        thresholds={0: "red", 1: "green"},
        states={0: "down", 1: "up"},
    ),
    Panel(
        "Failed calls of the shared cache per second",
        "`auth`: check the password. `timeout`: the server or the network is slow.",
        [Query(_L2_FAILURES, "{{reason}}")],
        stacked=True,
    ),
    Panel(
        "Vectors that the shared cache doesn't get, per second",
        "`full`: raise `cache.write_queue_max_bytes`. Others: the server is down or out of memory.",
        [Query(rate("l2_write_drops_total", by="reason"), "{{reason}}")],
        stacked=True,
    ),
    Panel(
        "Memory of L1 by process",
        "Up to `l1_max_bytes`.",
        [Query(gauge("sum", PROCESSES, "cache_bytes", PROCESS), PROCESS_NAME)],
        "bytes",
    ),
)
_PER_HOUR = "* 3600 / 1e9"
_COSTS = (
    Panel(
        "Cost and savings per hour",
        "Savings are what cached texts would have cost in addition.",
        [
            Query(f"{rate('cost_nanodollars_total')} {_PER_HOUR}", "cost"),
            Query(f"{rate('saved_nanodollars_total')} {_PER_HOUR}", "saved by the cache"),
            Query(f"{rate('provider_nanodollars_total')} {_PER_HOUR}", "billed by providers"),
        ],
        "currencyUSD",
    ),
    Panel(
        "Cost per hour by API key",
        "A key without a name stands for requests without one.",
        [Query(f"{rate('cost_nanodollars_total', by='key')} {_PER_HOUR}", "{{key}}")],
        "currencyUSD",
        stacked=True,
    ),
    Panel(
        "Cost per hour by model",
        "Of models that have a price.",
        [Query(f"{rate('cost_nanodollars_total', by='model')} {_PER_HOUR}", "{{model}}")],
        "currencyUSD",
        stacked=True,
    ),
    Panel(
        "Tokens per second by API key",
        "Who uses the service.",
        [Query(rate("key_tokens_total", by="key"), "{{key}}")],
        stacked=True,
    ),
    Panel(
        "Requests that a key's limits reject",
        "`rate_limit_exceeded`: a quota. `insufficient_quota`: the budget is used up.",
        [
            Query(
                rate("key_requests_total", f'outcome!="admitted",{MODEL}', "key, outcome"),
                "{{key}} {{outcome}}",
            )
        ],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Quotas and costs without the shared server, per second",
        "Quotas: limits are per replica until the server is back. Costs: they wait in memory.",
        [
            Query(rate("quota_fallbacks_total", PROCESS), "quotas"),
            Query(rate("ledger_failures_total", PROCESS), "costs"),
        ],
    ),
)
_TARGET = gauge("max", "deployment", "autoscaling_target_replicas", SCALING)
_RUNNING = gauge("count", "deployment", "process_memory_bytes", SCALING)
_AUTOSCALING = (
    Panel(
        "Replicas: target and running",
        "Running below the target for long: the cluster has no room, or replicas don't start.",
        [
            Query(_TARGET, "{{deployment}} target"),
            Query(f"{_RUNNING} and on (deployment) {_TARGET}", "{{deployment}} running"),
        ],
    ),
    Panel(
        "Replicas that each term needs",
        "Without bounds and delays. Above the target for long: raise `max_replicas`, or add nodes.",
        [
            Query(
                gauge("max", "deployment, term", "autoscaling_needed_replicas", SCALING),
                "{{deployment}} {{term}}",
            )
        ],
    ),
    Panel(
        "What decides the target",
        "A term, the bounds, the delay on the way down, or lost reports.",
        [
            Query(
                gauge("max", "deployment, term", "autoscaling_decided_by", SCALING),
                "{{deployment}} {{term}}",
            )
        ],
        kind="state-timeline",
        thresholds={0: "transparent", 1: "blue"},
        states={0: " ", 1: "decides"},
    ),
)
_REPLICAS = (
    Panel(
        "Replicas by node",
        "Of each deployment.",
        [
            Query(
                gauge("count", "NodeAddress, deployment", "process_memory_bytes", PROCESS),
                "{{NodeAddress}} {{deployment}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Engine busy",
        "Share of the time with a batch. Near 1 on all replicas: raise `max_replicas`.",
        [Query(gauge("max", PROCESSES, "engine_busy_share", PROCESS), PROCESS_NAME)],
        "percentunit",
        maximum=1,
    ),
    Panel(
        "Start of a replica by step",
        "The slowest one. How far ahead a replica must be started.",
        [Query(gauge("max", "step", "startup_seconds", PROCESS), "{{step}}")],
        "s",
        "bargauge",
    ),
    Panel(
        "CPU by process",
        "Cores in use.",
        [
            Query(
                f"sum by ({PROCESSES}) (rate(ray_embedserve_process_cpu_seconds{{{PROCESS}}}"
                "[$__rate_interval]))",
                PROCESS_NAME,
            )
        ],
        stacked=True,
    ),
    Panel(
        "Memory by process",
        "Resident.",
        [Query(gauge("sum", PROCESSES, "process_memory_bytes", PROCESS), PROCESS_NAME)],
        "bytes",
        stacked=True,
    ),
    Panel(
        "Replicas that have a model in memory",
        "0 for a model that is in use: raise `max_loaded_models`, or give it a deployment.",
        [Query(gauge("sum", "model", "model_loaded", MODEL), "{{model}}")],
    ),
)
_PROVIDER_CALLS = rate("provider_calls_total", f'outcome="ok",{MODEL}', "model")
_PROVIDERS = (
    Panel(
        "Calls of providers by outcome",
        "`rate_limited`: lower `provider.max_concurrent_calls`. `failed`: a wrong key or reply.",
        [Query(rate("provider_calls_total", by="outcome"), "{{outcome}}")],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Mean time of a provider's call",
        "Of successful ones.",
        [Query(f"{rate('provider_seconds_total', by='model')} / {_PROVIDER_CALLS}", "{{model}}")],
        "s",
    ),
    Panel(
        "Provider calls in flight, and retries",
        "At `provider.max_concurrent_calls` for long: texts queue.",
        [
            Query(gauge("sum", "model", "provider_calls_in_flight", MODEL), "{{model}} in flight"),
            Query(rate("provider_retries_total", by="model"), "{{model}} retries per second"),
        ],
    ),
)
_VECTORS = (
    Panel(
        "Drift of vectors",
        "Largest 1 - cosine to the first vectors of twelve fixed texts. Above 0.001: vectors have "
        "changed.",
        [Query(gauge("max", "model", "vector_drift", MODEL), "{{model}}")],
        thresholds={0.001: "red"},
    ),
    Panel(
        "Texts that a fallback computes, per second",
        "The model fails that was requested; `/health` says why.",
        [
            Query(
                rate("fallback_texts_total", by="model, answered_by"),
                "{{answered_by}} for {{model}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Texts that spill over, per second",
        "More texts come than the model computes within `spill_over_after_s`; another one of its "
        "space computes them.",
        [
            Query(
                rate("spilled_texts_total", by="model, answered_by"),
                "{{answered_by}} for {{model}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Requests for an alias with a canary, per second",
        "By the model that answers.",
        [Query(rate("canary_requests_total", by="alias, model"), "{{alias}}: {{model}}")],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Texts for the shadow of an alias, per second",
        "Dropped: the second model is too slow, or fails. Answers don't wait for it.",
        [
            Query(
                rate("shadow_texts_total", by="alias, model, outcome"),
                "{{alias}}, {{model}}: {{outcome}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Agreement of an alias' models",
        "Shares of nearest neighbors that both models have in common, and the correlation.",
        [
            Query(
                gauge("avg", "alias, model, neighbors", "shadow_neighbor_agreement", MODEL),
                "{{alias}}, {{model}}: {{neighbors}} neighbors",
            ),
            Query(
                gauge("avg", "alias, model", "shadow_rank_correlation", MODEL),
                "{{alias}}, {{model}}: rank correlation",
            ),
            Query(gauge("avg", "alias, model", "shadow_cosine", MODEL), "{{alias}}: cosine"),
        ],
    ),
    Panel(
        "Tokens per second of an alias' models",
        "In the batches that held compared texts.",
        [
            Query(
                f"{rate('shadow_tokens_total', by='alias, model')} / "
                f"{rate('shadow_seconds_total', by='alias, model')}",
                "{{alias}}: {{model}}",
            )
        ],
    ),
    Panel(
        "Spans of traces per second",
        "Dropped: the queue of a process is full, or the collector doesn't take them.",
        [
            Query(rate("spans_exported_total", PROCESS), "exported"),
            Query(rate("spans_dropped_total", PROCESS, "reason"), "dropped: {{reason}}"),
        ],
    ),
    Panel(
        "Providers and images",
        "Whether a model's provider gets calls (1) or not (0), and images that can't be fetched.",
        [
            Query(gauge("min", "model", "provider_up", MODEL), "provider of {{model}}"),
            Query(
                rate("image_fetches_total", f'outcome!="ok",{MODEL}', "outcome"),
                "images per second: {{outcome}}",
            ),
        ],
    ),
)

OPERATION_ROWS = {
    "Cache": _CACHE,
    "Costs and keys": _COSTS,
    "Autoscaling": _AUTOSCALING,
    "Replicas": _REPLICAS,
    "Providers": _PROVIDERS,
    "Vectors and traces": _VECTORS,
}
