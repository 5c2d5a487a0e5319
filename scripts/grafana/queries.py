"""Queries of the board, in PromQL, with the variables of the board."""

from collections.abc import Mapping, Sequence

from scripts.grafana.panels import Panel, Query

#: Selectors of series by the variables of the board.
MODEL = 'model=~"$model"'
MODEL_LANE = f'{MODEL},lane=~"$lane"'
SCALING = 'deployment=~"$deployment"'
PROCESS = 'deployment=~"$deployment",NodeAddress=~"$node"'
#: Labels that tell processes apart, and their names in a legend. Standalone services have no
#: labels of Ray, so `instance` does.
PROCESSES = "deployment, replica, NodeAddress, instance"
PROCESS_NAME = "{{deployment}} {{replica}} {{NodeAddress}} {{instance}}"


def rate(metric: str, labels: str = MODEL, by: str = "") -> str:
    """Returns the query of a counter's increase per second, summed over all labels but `by`."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate(ray_embedserve_{metric}{{{labels}}}[$__rate_interval]))"


def or_zero(query: str) -> str:
    """Returns a query that has a value before the first event, too."""
    return f"({query} or vector(0))"


def quantiles(
    histogram: str, labels: str = MODEL, by: str = "", shares: Sequence[int] = (50, 95, 99)
) -> list[Query]:
    """Returns the queries of a histogram's quantiles, for each value of the label `by`.

    Args:
        histogram: its name, without prefix.
        labels: a selector of its series.
        by: a label, or empty for one result.
        shares: the quantiles in percent.
    """
    buckets = rate(f"{histogram}_bucket", labels, f"le, {by}" if by else "le")
    name = f"{{{{{by}}}}} " if by else ""
    return [
        Query(f"histogram_quantile({share / 100:g}, {buckets})", f"{name}p{share}")
        for share in shares
    ]


def whole(queries: Sequence[Query]) -> list[Query]:
    """Returns quantiles of a count, rounded up: within a bucket they are interpolated."""
    return [Query(f"ceil({query.expr})", query.legend) for query in queries]


def gauge(function: str, by: str, metric: str, labels: str) -> str:
    """Returns the query of a gauge, aggregated over all labels but `by`."""
    return f"{function} by ({by}) (ray_embedserve_{metric}{{{labels}}})"


def stat(
    title: str,
    description: str,
    expr: str,
    unit: str,
    thresholds: Mapping[float, str] | None = None,
) -> Panel:
    """Returns a panel that shows one number; see `Panel`."""
    queries = [Query(expr)]
    return Panel(title, description, queries, unit, "stat", 3, thresholds=thresholds or {})
