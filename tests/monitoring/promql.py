"""The queries of the board and of the alerts, and what they read."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from serve_app import metrics
from serve_app.metrics import GAUGES, HISTOGRAMS, RAY_PREFIX, Metric
from tests.monitoring.promtool import MONITORING

#: Labels that Ray and Prometheus add to all metrics of the service.
ADDED_LABELS = {"application", "deployment", "replica", "NodeAddress", "instance"}
_SERIES = re.compile(r"\b(ray_\w+)\b(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|on|group_left) \(([^)]*)\)")


def board() -> dict[str, Any]:
    text = (MONITORING / "grafana" / "embedserve.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def board_queries() -> Iterator[tuple[str, str]]:
    """Yields each query of the board, after the title of its panel."""
    for panel in board()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def alert_queries() -> Iterator[tuple[str, str]]:
    """Yields the query of each alert, after its name."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def series(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the name of each metric of the service in a query, and the labels that select it."""
    for name, selector in _SERIES.findall(query):
        yield name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", selector))


def grouping(query: str) -> set[str]:
    """Returns the labels by which a query groups or joins."""
    lists = _GROUPING.findall(query)
    return {label.strip() for labels in lists for label in labels.split(",")} - {""}


def exported_labels() -> dict[str, set[str]]:
    """Returns the labels of each metric by the names that Prometheus sees."""
    exported = {}
    for metric in vars(metrics).values():
        if isinstance(metric, Metric):
            for name, added in _exported_names(metric):
                exported[RAY_PREFIX + name] = {*metric.tags, *added}
    return exported


def _exported_names(metric: Metric) -> Iterator[tuple[str, set[str]]]:
    if metric in GAUGES:
        yield metric.name, set()
    elif metric in HISTOGRAMS:
        yield f"{metric.name}_bucket", {"le"}
        yield from ((f"{metric.name}_{part}", set()) for part in ("sum", "count"))
    else:
        yield f"{metric.name}_total", set()
