from prometheus_client.parser import text_string_to_metric_families

from serve_app.meter import Meter
from serve_app.metrics import (
    BATCH_FAILURES,
    CACHE_HITS,
    L2_UP,
    QUEUED_TOKENS,
    REQUEST_DURATION,
    REQUESTS,
    TEXTS,
)
from serve_app.service.replica_stats import SingleReplica

QUEUED = {("bulk", "embed", "a"): 7.0, ("interactive", "rerank", "b"): 2.0}


async def test_metrics_have_the_names_and_tags_that_ray_exports() -> None:
    meter = Meter()
    stats = SingleReplica(meter, lambda: {L2_UP: 1.0, QUEUED_TOKENS: QUEUED})
    meter.add(BATCH_FAILURES, 3, "a")
    meter.add(CACHE_HITS, 4, "l1", "a")
    meter.for_model("b").add(CACHE_HITS, 5, "l2")
    await stats.prometheus_text()
    meter.add(BATCH_FAILURES, 30, "a")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(await stats.prometheus_text())
        for sample in family.samples
    }
    assert samples == {
        ("ray_embedserve_batch_failures_total", "a"): 33,
        ("ray_embedserve_cache_hits_total", "a", "l1"): 4,
        ("ray_embedserve_cache_hits_total", "b", "l2"): 5,
        ("ray_embedserve_l2_up",): 1,
        ("ray_embedserve_queued_tokens", "bulk", "a", "embed"): 7,
        ("ray_embedserve_queued_tokens", "interactive", "b", "rerank"): 2,
    }


async def test_a_reset_affects_totals_but_not_metrics() -> None:
    meter = Meter()
    stats = SingleReplica(meter)

    def add_request() -> None:
        meter.add(REQUESTS, 1, "200")
        meter.add(TEXTS, 2)
        meter.observe(REQUEST_DURATION, 0.5, "/embed", "bulk", "a")

    add_request()
    await stats.reset()
    add_request()
    totals = await stats.totals()
    assert (totals.requests, totals.failed, totals.texts, totals.seconds) == (1, 0, 2, 0.5)
    assert "ray_embedserve_texts_total 4.0\n" in await stats.prometheus_text()
