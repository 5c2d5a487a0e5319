"""A real Prometheus scrapes a real service under load, and evaluates each query."""

import hashlib
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from scripts.grafana.picture import PrometheusRange, draw
from serve_app.command.ports import free_port
from serve_app.command.service_process import ServiceProcess
from tests.monitoring import promql
from tests.monitoring.promtool import MONITORING, needs_prometheus, promtool

pytestmark = needs_prometheus
KEYS = {"search": "es-search", "limited": "es-limited", "prometheus": "es-prometheus"}
MODEL = "words"
#: What a service that does well in one process doesn't export.
ON_RAY = ("autoscaling_",)
OF_PROVIDERS = ("provider_", "fallback_texts", "spilled_texts", "image_fetches")
OF_TRACES = ("spans_",)
OF_ALIASES = ("canary_requests", "shadow_")
OF_FAILURES = ("refused", "batch_failures", "l2_failures", "l2_write_drops")
OF_THE_SHARED_SERVER = ("quota_fallbacks", "ledger_failures")
ABSENT = tuple(
    f"ray_embedserve_{name}"
    for name in (
        *ON_RAY,
        *OF_PROVIDERS,
        *OF_TRACES,
        *OF_ALIASES,
        *OF_FAILURES,
        *OF_THE_SHARED_SERVER,
    )
)
LOAD_S = 8.0
LIMIT_S = 30.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    port = free_port()
    keys: list[dict[str, object]] = [
        {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for name, key in KEYS.items()
    ]
    keys[1]["requests_per_minute"] = 1
    model = {
        "name": MODEL,
        "source": "hashing:64",
        "usd_per_1k_tokens": 0.01,
        "canary_interval_s": 1,
    }
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "embedserve",
                "args": {"models": [model], "cache": {"data_dir": str(folder / "cache")}},
                "deployments": [{"name": "EmbedServer", "user_config": {"access": {"keys": keys}}}],
            }
        ],
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    command = (sys.executable, "-m", "serve_app.command.main", "serve", "--standalone", str(file))
    process = ServiceProcess(command, f"http://127.0.0.1:{port}")
    process.start()
    try:
        list(process.wait_until_ready(timeout_s=60))
        yield process.url
    finally:
        process.stop()


class Prometheus:
    """A Prometheus server, and what it answers."""

    def __init__(self, http: httpx2.Client) -> None:
        self.url = str(http.base_url)
        self._http = http

    def is_ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def values(self, query: str) -> list[float]:
        """Returns the numbers of a query's result, without those that are not a number."""
        reply = self._http.get("/api/v1/query", params={"query": query}).json()
        assert reply["status"] == "success", f"{query}: {reply}"
        numbers = [float(series["value"][1]) for series in reply["data"]["result"]]
        return [number for number in numbers if not math.isnan(number)]

    def label_values(self, query: str) -> list[str]:
        """Evaluates the query of a variable of the board."""
        selector, label = query.removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        reply = self._http.get(f"/api/v1/label/{label}/values", params={"match[]": selector}).json()
        assert reply["status"] == "success"
        found: list[str] = reply["data"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


def configuration(folder: Path, service: str) -> Path:
    """Returns the project's configuration with what a user changes: the address and the key."""
    text = (MONITORING / "prometheus.yml").read_text("utf-8")
    key = folder / "api-key"
    key.write_text(KEYS["prometheus"], "utf-8")
    changes = {
        "embedserve:8000": service.removeprefix("http://"),
        "# authorization:": "authorization:",
        "#   credentials_file: /etc/prometheus/embedserve-api-key": f"  credentials_file: {key}",
        "scrape_interval: 10s": "scrape_interval: 1s",
        "scrape_timeout: 8s": "scrape_timeout: 1s",
        "evaluation_interval: 10s": "evaluation_interval: 1s",
    }
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text("utf-8"), "utf-8")
    file = folder / "prometheus.yml"
    file.write_text(text, "utf-8")
    return file


@contextmanager
def running_prometheus(file: Path) -> Iterator[Prometheus]:
    port = free_port()
    with subprocess.Popen(
        [
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={file.parent / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as http:
                prometheus = Prometheus(http)
                deadline = time.monotonic() + LIMIT_S
                while not prometheus.is_ready():
                    assert process.poll() is None, "Prometheus has ended"
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                yield prometheus
        finally:
            process.terminate()


def send_load(service: str) -> None:
    """Sends requests of both lanes, new and known texts, and some that fail."""
    with httpx2.Client(base_url=service, timeout=LIMIT_S) as http:

        def send(key: str, texts: list[str], lane: str = "interactive") -> None:
            headers = {"authorization": f"Bearer {KEYS[key]}", "x-priority": lane}
            http.post("/v1/embeddings", json={"input": texts}, headers=headers)

        end = time.monotonic() + LOAD_S
        number = 0
        while time.monotonic() < end:
            number += 1
            send("search", [f"new {number}", "known"])
            send("search", [f"{number} {index} " + "word " * index for index in range(20)], "bulk")
            send("search", [""])
            send("limited", ["limited"])
            time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    file = configuration(tmp_path_factory.mktemp("prometheus"), service)
    promtool("check", "config", file)
    with running_prometheus(file) as prometheus:
        send_load(service)
        yield prometheus


def evaluated(query: str) -> str:
    """Returns a query with the values that Grafana puts in place of the board's variables."""
    query = query.replace("$__rate_interval", "10s")
    for variable in promql.board()["templating"]["list"]:
        query = query.replace(f"${variable['name']}", variable.get("allValue", ""))
    assert "$" not in query
    return query


def needs_more(query: str) -> bool:
    """Whether a query reads a metric that this service doesn't export."""
    return any(name.startswith(ABSENT) for name, _ in promql.series(query))


def test_it_gets_the_metrics_with_an_api_key(prometheus: Prometheus) -> None:
    assert prometheus.values('up{job="embedserve"}') == [1.0]


def test_each_query_of_the_board_has_a_result(prometheus: Prometheus) -> None:
    queries = [*promql.board_queries()]
    without = {query for query in queries if not prometheus.values(evaluated(query[1]))}
    # On a slow machine a call of the shared server may fail, and then has a metric.
    assert {query for query in without if not needs_more(query[1])} == set()


def test_no_metric_is_excused_that_the_board_does_not_read() -> None:
    read = {name for _, query in promql.board_queries() for name, _ in promql.series(query)}
    assert [prefix for prefix in ABSENT if not any(name.startswith(prefix) for name in read)] == []


def test_rows_can_be_drawn_without_grafana(prometheus: Prometheus, tmp_path: Path) -> None:
    file = tmp_path / "board.png"
    draw(PrometheusRange(prometheus.url, minutes=0.5), ("Latency", "Autoscaling"), "Two rows", file)
    picture = imread(file)
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 100  # colors


def test_each_alert_is_evaluated(prometheus: Prometheus) -> None:
    rules = {rule["name"]: rule for rule in prometheus.rules()}
    assert sorted(rules) == sorted(name for name, _ in promql.alert_queries())
    assert {name: rule["health"] for name, rule in rules.items()} == dict.fromkeys(rules, "ok")
    # Half of the requests of this test get a 429 on purpose.
    firing = {name for name, rule in rules.items() if rule["state"] != "inactive"}
    assert firing <= {"EmbedServeRequestsRejected"}


def test_the_variables_of_the_board_have_values(prometheus: Prometheus) -> None:
    variables = {v["name"]: v for v in promql.board()["templating"]["list"] if v["type"] == "query"}
    values = {
        name: prometheus.label_values(variable["definition"])
        for name, variable in variables.items()
    }
    # Those of Ray are empty in a standalone service.
    assert values == {
        "model": [MODEL],
        "lane": ["bulk", "interactive"],
        "deployment": [],
        "node": [],
    }
