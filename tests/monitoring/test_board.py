"""The Grafana board: as generated, complete, and of metrics that exist."""

import re
from itertools import combinations

import yaml

from scripts.grafana.board import FILE, board_text
from tests.monitoring import promql
from tests.monitoring.promtool import MONITORING, ROOT

QUERIES = [*promql.board_queries(), *promql.alert_queries()]
BOARD = promql.board()
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
ROWS = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
VARIABLES = {variable["name"] for variable in BOARD["templating"]["list"]}


def test_the_board_is_generated() -> None:
    assert FILE.read_text("utf-8") == board_text(), "run: python -m scripts.grafana.board"


def test_each_query_reads_metrics_and_labels_that_exist() -> None:
    exported = promql.exported_labels()
    unknown = set()
    for source, query in QUERIES:
        used = dict(promql.series(query))
        assert used or query.startswith("up"), f"{source} reads no metric of the service"
        labels = {label for name in used for label in exported.get(name, ())}
        unknown |= {(source, name) for name in set(used) - set(exported)}
        unknown |= {
            (source, f"{name}{{{label}}}")
            for name, selected in used.items()
            for label in selected - exported.get(name, set()) - promql.ADDED_LABELS
        }
        unknown |= {
            (source, label) for label in promql.grouping(query) - labels - promql.ADDED_LABELS
        }
    assert unknown == set()


def test_each_metric_is_on_the_board() -> None:
    """But for those that others on the board include."""
    included = {
        *("ray_embedserve_cache_misses_total", "ray_embedserve_cache_entries"),
        *("ray_embedserve_cache_evictions_total", "ray_embedserve_l2_written_total"),
        "ray_embedserve_queued_texts",
        *("ray_embedserve_shadow_sample_texts", "ray_embedserve_shadow_nanodollars_total"),
        *("ray_embedserve_provider_texts_total", "ray_embedserve_provider_tokens_total"),
    }
    part = re.compile(r"_(bucket|sum|count)$")
    used = {name for _, query in promql.board_queries() for name, _ in promql.series(query)}
    exported = {part.sub("", name) for name in promql.exported_labels()}
    assert exported - {part.sub("", name) for name in used} == included


def test_each_variable_exists_and_is_used() -> None:
    used = set(re.findall(r"\$\{?(\w+)", FILE.read_text("utf-8"))) - {"__rate_interval", "__all"}
    assert used == VARIABLES


def test_each_panel_says_what_to_look_at() -> None:
    assert [panel["title"] for panel in PANELS if not panel["description"].endswith(".")] == []


def test_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [
        {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        for p in (panel["gridPos"] for panel in BOARD["panels"])
    ]
    assert all(x < 24 for place in places for x, _ in place)
    assert not any(first & second for first, second in combinations(places, 2))


def test_each_row_is_documented() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE) == ROWS


def test_grafana_finds_the_board_and_its_data_source() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text("utf-8"))[
        "datasources"
    ]
    scrape_interval = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))["global"][
        "scrape_interval"
    ]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["jsonData"]["timeInterval"] == scrape_interval
    (provider,) = yaml.safe_load((provisioning / "dashboards/embedserve.yml").read_text("utf-8"))[
        "providers"
    ]
    assert provider["type"] == "file"
