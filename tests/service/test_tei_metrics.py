"""The metrics have the names that boards of text-embeddings-inference read."""

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.meter import Gauges, Meter
from serve_app.metrics import (
    BATCH_DURATION,
    BATCH_SIZE,
    QUEUE_DURATION,
    QUEUED_TEXTS,
    REQUEST_DURATION,
    REQUESTS,
    STAGE_SECONDS,
    TEXT_LENGTH,
    TEXTS,
)
from serve_app.service.prometheus_text import merge_pages
from serve_app.service.replica_stats import SingleReplica
from serve_app.service.tei_metrics import tei_page
from tests.fakes import SPEC

EMBEDDER = replace(SPEC, name='a "model"')
RERANKER = replace(SPEC, name="r", tasks=("rerank",), labels=("relevant",))
#: The samples that TEI 1.9 exports; boards of OPEA and others read some of them.
HISTOGRAMS = (
    *("te_request_duration", "te_request_tokenization_duration", "te_request_queue_duration"),
    *("te_request_inference_duration", "te_request_input_length"),
    *("te_batch_next_size", "te_batch_next_tokens"),
    *("te_embed_duration", "te_embed_tokenization_duration", "te_embed_queue_duration"),
    *("te_embed_inference_duration", "te_predict_duration", "te_predict_tokenization_duration"),
    *("te_predict_queue_duration", "te_predict_inference_duration"),
)
TEI_SAMPLES = {
    *("te_request_count", "te_request_success", "te_request_failure", "te_queue_size"),
    *("te_embed_count", "te_embed_success", "te_predict_count", "te_predict_success"),
    *(f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")),
}

Samples = dict[tuple[str, ...], float]


def samples(page: str) -> Samples:
    """Returns the values by name and tags, in the order of the tags' names.

    The parser adds a suffix to the names of counters.
    """
    return {
        (
            sample.name.removesuffix("_total"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture
async def page() -> str:
    meter = Meter()
    for spec in (EMBEDDER, RERANKER):
        counts = meter.for_model(spec.name)
        counts.add(REQUESTS, 5, "200")
        counts.add(TEXTS, 12)
        counts.add(STAGE_SECONDS, 0.25, "tokenize")
        counts.add(STAGE_SECONDS, 8, "infer")
        for route, lane in (("/embed", "bulk"), ("/embed", "interactive"), ("/rerank", "bulk")):
            counts.observe(REQUEST_DURATION, 0.25, route, lane)
        counts.observe(QUEUE_DURATION, 0.5, "bulk")
        meter.observe(BATCH_DURATION, 2, spec.name)
        meter.observe(BATCH_SIZE, 3, spec.name)
        meter.observe_all(TEXT_LENGTH, [5, 7], spec.name)
    meter.for_model(EMBEDDER.name).add(REQUESTS, 2, "429")
    meter.for_model(EMBEDDER.name).add(REQUESTS, 3, "422")
    meter.for_model("").add(REQUESTS, 1, "404")
    gauges: Gauges = {
        QUEUED_TEXTS: {
            ("bulk", "embed", EMBEDDER.name): 7,
            ("interactive", "embed", EMBEDDER.name): 2,
        }
    }
    return await SingleReplica(meter, lambda: gauges).prometheus_text()


def test_every_name_of_tei_is_present(page: str) -> None:
    assert {name for name, *_ in samples(tei_page(page, [EMBEDDER, RERANKER]))} == TEI_SAMPLES


def test_values_are_sums_over_replicas_routes_and_lanes(page: str) -> None:
    name = EMBEDDER.name
    found = samples(tei_page(page, [EMBEDDER, RERANKER]))
    expected: Samples = {
        ("te_request_count", name): 10,
        ("te_request_success", name): 5,
        ("te_request_failure", "overloaded", name): 2,
        ("te_request_failure", "validation", name): 3,
        ("te_request_count", ""): 1,
        ("te_request_failure", "validation", ""): 1,
        ("te_embed_count", name): 12,
        ("te_predict_success", "r"): 12,
        ("te_queue_size", name): 9,
        ("te_queue_size", "r"): 0,
        ("te_request_duration_bucket", "0.2", name): 0,
        ("te_request_duration_bucket", "0.3", name): 3,
        ("te_request_duration_bucket", "+Inf", name): 3,
        ("te_request_duration_count", name): 3,
        ("te_request_duration_sum", name): 0.75,
        ("te_request_tokenization_duration_sum", name): 0.25,
        ("te_request_tokenization_duration_count", name): 5,
        ("te_request_queue_duration_sum", name): 0.5,
        ("te_predict_inference_duration_sum", "r"): 2,
        ("te_request_input_length_sum", name): 12,
        ("te_batch_next_size_sum", name): 3,
        ("te_batch_next_tokens_sum", name): 12,
        ("te_batch_next_tokens_count", name): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert not any(key[0].startswith("te_embed") and "r" in key for key in found)


def test_pages_of_ray_have_further_tags() -> None:
    name = "ray_embedserve_requests_total"
    lines = "".join(
        f'{name}{{model="a",replica="{replica}",status="200"}} 2.0\n' for replica in "xy"
    )
    page = merge_pages([f"# HELP {name} Requests.\n# TYPE {name} counter\n{lines}"])
    assert samples(tei_page(page, [replace(SPEC, name="a")]))["te_request_count", "a"] == 4


def test_a_service_without_requests_has_an_empty_queue() -> None:
    found = samples(tei_page("", [EMBEDDER]))
    assert found["te_queue_size", EMBEDDER.name] == 0
    assert found["te_request_count", EMBEDDER.name] == 0


def test_each_family_has_one_type(page: str) -> None:
    lines = (page + tei_page(page, [EMBEDDER, RERANKER])).splitlines()
    types = [line.split(" ")[2] for line in lines if line.startswith("# TYPE ")]
    assert len(types) == len(set(types))
