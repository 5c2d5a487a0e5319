"""Panels of Grafana, as the JSON of its dashboards describes them.

A `Panel` has a title, a text that says what to look at, and queries. `dashboard` lays panels out in
rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

_WIDTH = 24  #: of a board, in Grafana's units
_SCHEMA_VERSION = 39  #: of the JSON, that of Grafana 11

Kind = Literal["timeseries", "stat", "state-timeline", "bargauge"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query, and the name of each series that it returns."""

    expr: str
    legend: str = ""  #: with labels in double braces


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"  #: one of Grafana's names
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False
    maximum: float | None = None
    #: Values from which the color changes, and the colors.
    thresholds: Mapping[float, str] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)  #: names of values

    @property
    def height(self) -> int:
        """In Grafana's units."""
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A list above the board that selects values of a label."""

    name: str
    label: str  #: of the metrics
    metrics: str  #: a selector of series that have it
    description: str


def dashboard(
    uid: str,
    title: str,
    description: str,
    rows: Mapping[str, Sequence[Panel]],
    variables: Sequence[Variable],
) -> Json:
    """Returns the JSON of a dashboard.

    Args:
        uid: stays the same, so that links to the board do.
        title: of the board.
        description: of the board.
        rows: panels by the title of their row; each panel begins a new line if it doesn't fit.
        variables: besides the data source.
    """
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["embedserve"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # the cross hair is shown in all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_DATA_SOURCE, *map(_variable, variables)]},
        "annotations": {"list": []},
        "links": [],
        "panels": list(_layout(rows)),
    }


_DATA_SOURCE: Json = {
    "name": "datasource",
    "label": "data source",
    "type": "datasource",
    "query": "prometheus",
}
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _variable(variable: Variable) -> Json:
    query = f"label_values({variable.metrics}, {variable.label})"
    return {
        "name": variable.name,
        "description": variable.description,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": variable.name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # matches series without the label too, those of a standalone service
        "current": {"text": "All", "value": "$__all"},
    }


def _layout(rows: Mapping[str, Sequence[Panel]]) -> Iterable[Json]:
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
            "panels": [],
        }
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y, height = 0, y + height, 0
            number += 1
            position = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": position, **_panel(panel)}
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel) -> Json:
    defaults: Json = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic"},
        "custom": _style(panel),
        "mappings": [],
    }
    if panel.maximum is not None:
        defaults |= {"min": 0, "max": panel.maximum}
    elif panel.kind == "timeseries":
        defaults["min"] = 0
    if panel.thresholds or panel.kind == "stat":
        steps: list[Json] = [{"color": "green", "value": None}]
        steps += [{"color": color, "value": value} for value, color in panel.thresholds.items()]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        if panel.kind != "timeseries":
            defaults["color"] = {"mode": "thresholds"}
    if panel.states:
        options = {str(value): {"text": name} for value, name in panel.states.items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "range": True,
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    }


def _style(panel: Panel) -> Json:
    if panel.kind == "state-timeline":
        return {"fillOpacity": 80, "lineWidth": 0}
    if panel.kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 0,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.thresholds else "off"},
    }


def _options(panel: Panel) -> Json:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if panel.kind == "stat":
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area"}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal"}
    if panel.kind == "state-timeline":
        return {"mergeValues": True, "showValue": "auto", "rowHeight": 0.8, "legend": legend}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
