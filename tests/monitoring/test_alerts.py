"""Each alert fires when it should, and not otherwise: `promtool test rules`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.promtool import MONITORING, ROOT, needs_prometheus, promtool
from tests.repo.test_docs import anchors

RULES = MONITORING / "alerts.yml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}
#: Values of a series, one every 10 s: a start, a step, and how often it is repeated.
CONSTANT = "+0x150"
MINI = 'model="mini"'
EMBEDDER = 'application="embedserve",deployment="Embedder"'
NAMES = {"application": "embedserve", "deployment": "Embedder"}


@dataclass(frozen=True)
class Case:
    """When an alert fires."""

    fires: dict[str, str]  #: series and values; the prefix of their names is left out
    calm: dict[str, str]  #: others, with which it doesn't fire
    minute: int  #: at which it has fired, and not one minute before
    summary: str
    labels: dict[str, str] = field(default_factory=dict)  #: besides the severity


def replicas(number: int) -> dict[str, str]:
    labels = [f'{EMBEDDER},replica="{index}"' for index in range(number)]
    return {f"embedserve_process_memory_bytes{{{label}}}": f"1000000{CONSTANT}" for label in labels}


def requests(per_10_s: dict[str, int]) -> dict[str, str]:
    return {
        f'embedserve_requests_total{{{MINI},status="{status}"}}': f"0+{count}x150"
        for status, count in per_10_s.items()
    }


def durations(lane: str, up_to_1_s: int, up_to_4_s: int) -> dict[str, str]:
    """Requests per 10 s by their duration."""
    labels = f'{MINI},lane="{lane}",route="/v1/embeddings"'
    counts = {"1": up_to_1_s, "4": up_to_1_s + up_to_4_s, "+Inf": up_to_1_s + up_to_4_s}
    return {
        f'embedserve_request_duration_seconds_bucket{{{labels},le="{le}"}}': f"0+{count}x150"
        for le, count in counts.items()
    }


TARGET = f"embedserve_autoscaling_target_replicas{{{EMBEDDER}}}"
NEEDED = f'embedserve_autoscaling_needed_replicas{{{EMBEDDER},term="arrivals"}}'
REPORTS = f'embedserve_autoscaling_decided_by{{{EMBEDDER},term="reports"}}'
FAILURES = f"embedserve_batch_failures_total{{{MINI}}}"
PROVIDER_UP = f"embedserve_provider_up{{{MINI}}}"
QUOTAS = 'embedserve_quota_fallbacks_total{reason="timeout"}'
OLDEST = 'embedserve_oldest_interactive_seconds{deployment="Embedder"}'
UP = 'up{job="embedserve",instance="embedserve:8000"}'
DRIFT = 'embedserve_vector_drift{model="mini",NodeAddress="10.0.0.1"}'
L2_UP = 'embedserve_l2_up{deployment="CacheLookup",replica="%s"}'
DROPS = 'embedserve_l2_write_drops_total{model="mini",reason="%s"}'
FALLBACK = 'embedserve_fallback_texts_total{model="mini",answered_by="mini-cpu"}'
CASES = {
    "EmbedServeDown": Case(
        {UP: "1x30 0x120"},
        {UP: "1x30 0x3 1x117"},
        7,
        "Prometheus gets no metrics of the service at embedserve:8000.",
        {"job": "embedserve", "instance": "embedserve:8000"},
    ),
    "EmbedServeRequestsFail": Case(
        requests({"200": 97, "503": 3}),
        requests({"200": 995, "503": 5, "422": 200, "429": 100}),
        3,
        "3% of the requests fail with a status of 500 or above.",
    ),
    "EmbedServeRequestsRejected": Case(
        requests({"200": 90, "429": 10}),
        requests({"200": 96, "429": 4}),
        6,
        "10% of the requests of mini get a 429.",
        {"model": "mini"},
    ),
    "EmbedServeSlow": Case(
        durations("interactive", 90, 10),
        {**durations("interactive", 995, 5), **durations("bulk", 0, 100)},
        11,
        "The p99 of interactive requests of mini is 3.7s.",
        {"model": "mini"},
    ),
    "EmbedServeTextsWait": Case(
        {OLDEST: f"6{CONSTANT}"},
        {OLDEST: "6 0 6 0 6 4+0x140"},
        1,
        "An interactive text has waited for 6s for a batch.",
        {"deployment": "Embedder"},
    ),
    "EmbedServeReplicasMissing": Case(
        {TARGET: f"3{CONSTANT}"},  # no process at all
        {TARGET: "2+0x30 3+0x55 2+0x60", **replicas(2)},
        10,
        "Embedder runs fewer replicas than its target of 3.",
        NAMES,
    ),
    "EmbedServeReplicasBounded": Case(
        {NEEDED: f"5{CONSTANT}", TARGET: f"4{CONSTANT}"},
        {NEEDED: f"4{CONSTANT}", TARGET: f"4{CONSTANT}"},
        15,
        "The load of Embedder needs 5 replicas, more than it may have.",
        NAMES,
    ),
    "EmbedServeReportsLost": Case(
        {REPORTS: f"1{CONSTANT}", TARGET: f"2{CONSTANT}"},
        {REPORTS: f"1{CONSTANT}", TARGET: f"0{CONSTANT}"},  # scaled to zero
        5,
        "The autoscaler gets no reports of the replicas of Embedder.",
        NAMES,
    ),
    "EmbedServeBatchesFail": Case(
        {FAILURES: "0x5 0+1x140"},
        {FAILURES: "0x5 0+1x4 4x140"},
        2,
        "6 batches of mini have failed within ten minutes.",
        {"model": "mini"},
    ),
    "EmbedServeVectorsDrift": Case(
        {DRIFT: "0.0000001x5 0.02x140"},
        {DRIFT: f"0.0009{CONSTANT}"},
        1,
        "Vectors of mini have changed by 0.02 (1 - cosine).",
        {"model": "mini", "NodeAddress": "10.0.0.1"},
    ),
    "EmbedServeSharedCacheDown": Case(
        {L2_UP % "a": f"0{CONSTANT}", L2_UP % "b": f"1{CONSTANT}"},
        {L2_UP % "a": "0x10 1x140", L2_UP % "b": f"1{CONSTANT}"},
        2,
        "A process doesn't reach the shared cache.",
        {"deployment": "CacheLookup"},
    ),
    "EmbedServeSharedCacheDrops": Case(
        {DROPS % "full": "0+3x150"},
        {DROPS % "down": "0+3x150", DROPS % "full": "0+3x20 60x130"},
        11,
        "Vectors are not written to the shared cache: full.",
        {"reason": "full"},
    ),
    "EmbedServeLimitsNotShared": Case(
        {QUOTAS: "0+1x150"},
        {QUOTAS: f"7{CONSTANT}"},
        6,
        "Limits of API keys hold for each replica alone: timeout.",
        {"reason": "timeout"},
    ),
    "EmbedServeCostsNotSaved": Case(
        {'embedserve_ledger_failures_total{reason="timeout"}': "0+1x150"},
        {'embedserve_ledger_failures_total{reason="timeout"}': "0+1x3 3x147"},
        11,
        "Costs wait in the memory of the processes: timeout.",
        {"reason": "timeout"},
    ),
    "EmbedServeProviderDown": Case(
        {PROVIDER_UP: f"0{CONSTANT}"},
        {PROVIDER_UP: "0x8 1x140"},
        2,
        "The provider of mini gets no calls, since its last ones have failed.",
        {"model": "mini"},
    ),
    "EmbedServeFallbackAnswers": Case(
        {FALLBACK: "0+2x150"},
        {FALLBACK: "0+2x2 4x147"},
        6,
        "mini-cpu computes texts of mini, which fails.",
        {"model": "mini", "answered_by": "mini-cpu"},
    ),
}


def rules_test(series: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "10s",
        "input_series": [
            {"series": name if name.startswith("up") else f"ray_{name}", "values": values}
            for name, values in series.items()
        ],
        "alert_rule_test": expected,
    }


def expectation(alert: str, minute: int, fires: bool) -> dict[str, Any]:
    case, rule = CASES[alert], ALERTS[alert]
    firing = {
        "exp_labels": {**case.labels, "severity": rule["labels"]["severity"]},
        "exp_annotations": {
            "summary": case.summary,
            "runbook_url": rule["annotations"]["runbook_url"],
        },
    }
    return {
        "eval_time": f"{minute}m",
        "alertname": alert,
        "exp_alerts": [firing] if fires else [],
    }


def test_each_alert_is_tested() -> None:
    assert list(CASES) == list(ALERTS)


@needs_prometheus
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_in_time_and_not_otherwise(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    fires = [expectation(alert, case.minute - 1, False), expectation(alert, case.minute, True)]
    calm = [expectation(alert, minute, False) for minute in range(1, 25)]
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "10s",
        "tests": [rules_test(case.fires, fires), rules_test(case.calm, calm)],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    promtool("test", "rules", file)


@needs_prometheus
def test_promtool_accepts_the_configuration() -> None:
    promtool("check", "config", MONITORING / "prometheus.yml")
    promtool("check", "rules", RULES)


@needs_prometheus
def test_a_service_that_was_never_scraped_is_down(tmp_path: Path) -> None:
    rule = ALERTS["EmbedServeDown"]
    firing = {
        "exp_labels": {"job": "embedserve", "severity": "page"},
        "exp_annotations": {
            "summary": "Prometheus gets no metrics of the service.",
            "runbook_url": rule["annotations"]["runbook_url"],
        },
    }
    expected = {"eval_time": "2m", "alertname": "EmbedServeDown", "exp_alerts": [firing]}
    content = {"rule_files": [str(RULES)], "tests": [rules_test({}, [expected])]}
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    promtool("test", "rules", file)


def test_each_alert_has_a_runbook() -> None:
    page = ROOT / "docs" / "monitoring.md"
    links = {name: rule["annotations"]["runbook_url"] for name, rule in ALERTS.items()}
    assert links == {name: f"docs/monitoring.md#{name.lower()}" for name in ALERTS}
    assert {name.lower() for name in ALERTS} - anchors(page) == set()


def test_no_runbook_lacks_its_alert() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert re.findall(r"^### (EmbedServe\w+)$", page, re.MULTILINE) == list(ALERTS)
