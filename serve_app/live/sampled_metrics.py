"""The metrics that a snapshot is made of. Others aren't sampled: they would be sent in vain."""

from serve_app.metrics import (
    BATCH_SIZE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHED_TEXTS,
    COST_NANO_USD,
    KEY_TOKENS,
    PADDED_TOKENS,
    REQUEST_DURATION,
    REQUESTS,
    SAVED_NANO_USD,
    TEXT_LENGTH,
    TEXTS,
    TOKENS,
)

COUNTERS = frozenset(
    {
        *(REQUESTS, TEXTS, TOKENS, CACHED_TEXTS, CACHE_HITS, CACHE_MISSES),
        *(PADDED_TOKENS, COST_NANO_USD, SAVED_NANO_USD, KEY_TOKENS),
    }
)
#: Histograms of which the number of values and their sum are sampled.
SUMMED = frozenset({BATCH_SIZE, TEXT_LENGTH})
#: Histograms of which the buckets are sampled, without the first tag: there are dozens of routes.
BUCKETED = frozenset({REQUEST_DURATION})
SAMPLED = COUNTERS | SUMMED | BUCKETED
