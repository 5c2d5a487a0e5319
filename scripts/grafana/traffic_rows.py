"""The rows on requests: load, latency, lanes, batches."""

from scripts.grafana.panels import Panel, Query
from scripts.grafana.queries import (
    MODEL,
    MODEL_LANE,
    PROCESS,
    PROCESS_NAME,
    PROCESSES,
    gauge,
    or_zero,
    quantiles,
    rate,
    stat,
    whole,
)

_FAILED = rate("requests_total", f'status=~"5..",{MODEL}')
_SUCCESSFUL = rate("requests_total", f'status="200",{MODEL}')
_STAGES = rate("stage_seconds_total", by="stage")
_OVERVIEW = (
    stat("Requests", "Of all statuses.", rate("requests_total"), "reqps"),
    stat("Texts per second", "Of successful requests.", rate("texts_total"), "short"),
    stat("Tokens per second", "Of successful requests.", rate("tokens_total"), "short"),
    stat(
        "Failed",
        "Share of requests with a status of 500 or above.",
        f"{or_zero(_FAILED)} / {rate('requests_total')}",
        "percentunit",
        {0.001: "yellow", 0.01: "red"},
    ),
    stat(
        "Interactive p99",
        "99 of 100 interactive requests are answered within this time.",
        quantiles("request_duration_seconds", f'lane="interactive",{MODEL}')[-1].expr,
        "s",
        {0.5: "yellow", 2: "red"},
    ),
    stat(
        "From the cache",
        "Share of texts that a cache answers, or that join another request.",
        f"{or_zero(rate('cached_texts_total'))} / {rate('texts_total')}",
        "percentunit",
    ),
    stat(
        "Cost per hour",
        "Of models that have a price, at the present rate.",
        f"{rate('cost_nanodollars_total')} * 3600 / 1e9",
        "currencyUSD",
    ),
    stat(
        "Processes",
        "Replicas of all deployments; standalone services count as one.",
        f"count(ray_embedserve_process_memory_bytes{{{PROCESS}}})",
        "short",
    ),
)
_LOAD = (
    Panel(
        "Requests by route",
        "What clients call.",
        [Query(rate("request_duration_seconds_count", MODEL_LANE, "route"), "{{route}}")],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Texts per second by model",
        "Of successful requests.",
        [Query(rate("texts_total", by="model"), "{{model}}")],
        stacked=True,
    ),
    Panel(
        "Tokens per second by model",
        "Of successful requests. What a model costs follows its tokens.",
        [Query(rate("tokens_total", by="model"), "{{model}}")],
        stacked=True,
    ),
    Panel(
        "Requests that fail, by status",
        "4xx: clients. 429: a queue is full, or a quota is used up. 503, 504: no replica in time.",
        [Query(rate("requests_total", f'status!="200",{MODEL}', "status"), "{{status}}")],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Groups of texts that replicas reject per second",
        "`rate_limit_exceeded`: the queue of the lane is full.",
        [Query(rate("refused_total", MODEL_LANE, "code, lane"), "{{code}} {{lane}}")],
        stacked=True,
    ),
    Panel(
        "Tokens of a text",
        "As the model reads them, after truncation.",
        whole(quantiles("text_length_tokens")),
    ),
)
_LATENCY = (
    Panel(
        "Latency by lane",
        "From the end of a request to its reply, of requests that fail too.",
        quantiles("request_duration_seconds", MODEL_LANE, "lane"),
        "s",
    ),
    Panel(
        "p99 by route",
        "Routes differ by the size of their requests.",
        quantiles("request_duration_seconds", MODEL_LANE, "route", (99,)),
        "s",
    ),
    Panel(
        "Mean time of a request by stage",
        "`queue` dominates: too few replicas. `infer` dominates: long texts, or a slow engine.",
        [Query(f"{_STAGES} / on () group_left () {_SUCCESSFUL}", "{{stage}}")],
        "s",
        stacked=True,
    ),
)
_LANES = (
    Panel(
        "Queued tokens by lane",
        "Waiting or being computed, in all replicas. Each lane of a replica takes up to "
        "`max_queued_tokens`, then requests get a 429.",
        [Query(gauge("sum", "lane", "queued_tokens", MODEL_LANE), "{{lane}}")],
        stacked=True,
    ),
    Panel(
        "Time in the queue by lane",
        "Until the batch of a text starts.",
        quantiles("queue_duration_seconds", MODEL_LANE, "lane"),
        "s",
    ),
    Panel(
        "Oldest interactive text by replica",
        "How long it has waited for a batch. Above your objective for long: too few replicas.",
        [Query(gauge("max", PROCESSES, "oldest_interactive_seconds", PROCESS), PROCESS_NAME)],
        "s",
    ),
)
_TEXTS_COMPUTED = rate("batch_size_texts_sum", by="model")
_BATCHES = rate("batch_size_texts_count", by="model")
_TOKENS_COMPUTED = rate("text_length_tokens_sum", by="model")
_PADDED_TOKENS = rate("padded_tokens_total", by="model")
_BUDGET = gauge("avg", "model", "budget_tokens", MODEL)
_BATCH_ROW = (
    Panel(
        "Texts of a batch",
        "Small under load: `batch_target_s` is too short.",
        [
            *whole(quantiles("batch_size_texts", shares=(50, 95))),
            Query(f"{_TEXTS_COMPUTED} / {_BATCHES}", "{{model}} mean"),
        ],
    ),
    Panel(
        "Fill of a batch",
        "Padded tokens of the mean batch, as a share of the budget. Near 1 under load.",
        [Query(f"{_PADDED_TOKENS} / {_BATCHES} / {_BUDGET}", "{{model}}")],
        "percentunit",
    ),
    Panel(
        "Padding waste",
        "Share of computed tokens that are padding. Large: raise `batch_lookahead_texts`.",
        [Query(f"clamp_min(1 - {_TOKENS_COMPUTED} / {_PADDED_TOKENS}, 0)", "{{model}}")],
        "percentunit",
        maximum=1,
    ),
    Panel(
        "Time of a batch",
        "Follows `batch_target_s`.",
        quantiles("batch_duration_seconds", by="model"),
        "s",
    ),
    Panel(
        "Tokens computed, and capacity",
        "The capacity falls while another program uses the same cores.",
        [
            Query(_TOKENS_COMPUTED, "{{model}} computed per second"),
            Query(gauge("sum", "model", "capacity_tokens_per_second", MODEL), "{{model}} capacity"),
        ],
    ),
    Panel(
        "Batches that fail per second",
        "Each is split until the failing text is alone. The Embedder's log has the reason.",
        [Query(rate("batch_failures_total", by="model"), "{{model}}")],
    ),
)

TRAFFIC_ROWS = {
    "Overview": _OVERVIEW,
    "Load": _LOAD,
    "Latency": _LATENCY,
    "Lanes": _LANES,
    "Batches": _BATCH_ROW,
}
