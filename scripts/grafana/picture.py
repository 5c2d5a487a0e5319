"""Draws the board without Grafana: its queries, answered by a Prometheus server, with matplotlib.

    python -m scripts.grafana.picture http://127.0.0.1:9090 board.png --minutes 5 --rows Load

The places, titles and queries are those of the board; the look is not Grafana's. Needs the
requirements of the plots: `make .venv/.installed-bench`.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from scripts.grafana.board import FILE
from scripts.grafana.panels import Json

_STEP_S = 5
#: What Grafana chooses for scrapes every ten seconds.
_RATE_INTERVAL = "40s"
_TIMEOUT_S = 30.0
_COLUMN_IN, _LINE_IN = 0.56, 0.3
_MAX_LEGENDS = 9
_MAX_LEGEND_CHARS = 46
_LEGEND_SHARE = 0.11  #: of the height of a diagram, for each line
_GREY = "#666666"


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel."""

    name: str
    times: np.ndarray  #: shape (n,), in minutes before the end, at most 0
    values: np.ndarray  #: shape (n,)


class PrometheusRange:
    """Answers queries about an interval."""

    def __init__(self, url: str, minutes: float, end_s: float | None = None) -> None:
        """Takes the address of a Prometheus server and an interval.

        Args:
            url: the address.
            minutes: the length of the interval.
            end_s: its end in Unix time; None: now.
        """
        self._url = url.rstrip("/")
        self._end = time.time() if end_s is None else end_s
        self._start = self._end - 60 * minutes

    def series(self, expr: str, legend: str) -> Iterator[Series]:
        """Yields the result of a query of the board.

        Raises:
            OSError: Prometheus doesn't answer, or refuses the query.
        """
        expr = re.sub(r"\$(?!__)\w+", ".*", expr).replace("$__rate_interval", _RATE_INTERVAL)
        parameters = {"query": expr, "start": self._start, "end": self._end, "step": _STEP_S}
        address = f"{self._url}/api/v1/query_range?{urlencode(parameters)}"
        with urlopen(address, timeout=_TIMEOUT_S) as reply:
            result = json.load(reply)["data"]["result"]
        for one in result:
            points = np.array(one["values"], dtype=float)
            name = _legend(legend, one["metric"])
            yield Series(name, (points[:, 0] - self._end) / 60, points[:, 1])


def _legend(template: str, labels: Mapping[str, str]) -> str:
    name = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), template)
    return " ".join(name.split())


def draw(prometheus: PrometheusRange, rows: Sequence[str], title: str, file: Path) -> None:
    """Draws rows of the board into a PNG file.

    Args:
        prometheus: answers the queries.
        rows: their titles; all if empty.
        title: says what is seen.
        file: the picture.
    """
    with mpl.rc_context({"font.size": 7.5, "axes.grid": True, "grid.color": "#E8E8E8"}):
        _draw_rows(prometheus, rows, title).savefig(file, dpi=100, metadata={"Software": None})


def _draw_rows(prometheus: PrometheusRange, rows: Sequence[str], title: str) -> Figure:
    panels = list(_selected(json.loads(FILE.read_text("utf-8")), rows))
    lines = sum(height for _, _, height in _lines(panels)) + 1.5
    figure = Figure(figsize=(24 * _COLUMN_IN, lines * _LINE_IN))
    figure.text(0.006, 1 - 0.7 / lines, title, fontsize=9, color=_GREY)
    tops = {y: top + 1.5 for y, top, _ in _lines(panels)}
    for panel in panels:
        place = panel["gridPos"]
        top = tops[place["y"]]
        if panel["type"] == "row":
            figure.text(
                0.006, 1 - (top + 0.75) / lines, panel["title"], fontsize=11, fontweight="bold"
            )
            continue
        axes = figure.add_axes(
            (
                (place["x"] + 0.75) / 24,
                1 - (top + place["h"] - 0.9) / lines,
                (place["w"] - 1.0) / 24,
                (place["h"] - 2.2) / lines,
            )
        )
        _draw_panel(axes, panel, prometheus)
    return figure


def _selected(board: Json, rows: Sequence[str]) -> Iterator[Json]:
    shown = False
    for panel in board["panels"]:
        if panel["type"] == "row":
            shown = not rows or panel["title"] in rows
        if shown:
            yield panel


def _lines(panels: Sequence[Json]) -> Iterator[tuple[int, float, int]]:
    """Yields the place of each line of panels on the board and in the picture, and its height."""
    top = 0.0
    heights: dict[int, int] = {}
    for panel in panels:
        place = panel["gridPos"]
        heights[place["y"]] = max(heights.get(place["y"], 0), place["h"])
    for y, height in heights.items():
        yield y, top, height
        top += height


def _draw_panel(axes: Axes, panel: Json, prometheus: PrometheusRange) -> None:
    axes.set_title(panel["title"], loc="left", fontsize=8, fontweight="bold")
    series = [
        one
        for target in panel["targets"]
        for one in prometheus.series(target["expr"], target["legendFormat"].replace("__auto", ""))
    ]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    if not any(np.isfinite(one.values).any() for one in series):
        axes.set_axis_off()
        axes.text(
            0.5, 0.5, "no data", ha="center", va="center", color=_GREY, transform=axes.transAxes
        )
    elif panel["type"] == "stat":
        axes.set_axis_off()
        text = format_value(series[0].values[-1], unit)
        axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=17, transform=axes.transAxes)
    elif panel["type"] == "bargauge":
        _draw_bars(axes, series, unit)
    elif panel["type"] == "state-timeline":
        _draw_states(axes, series)
    else:
        _draw_lines(axes, series, panel, unit)


def _draw_lines(axes: Axes, series: Sequence[Series], panel: Json, unit: str) -> None:
    style = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"]
    if style == "normal":
        times = np.unique(np.concatenate([one.times for one in series]))
        values = [_aligned(one, times) for one in series]
        axes.stackplot(times, values, labels=[one.name for one in series], alpha=0.65, linewidth=0)
    else:
        for one in series:
            axes.plot(one.times, one.values, label=one.name, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_value(value, unit)))
    _finish(axes)
    handles, names = axes.get_legend_handles_labels()
    short = [name[:_MAX_LEGEND_CHARS] for name in names[:_MAX_LEGENDS]]
    if any(short):
        # The legend is above the lines.
        axes.set_ylim(top=axes.get_ylim()[1] * (1 + _LEGEND_SHARE * len(short)))
        axes.legend(handles[:_MAX_LEGENDS], short, loc="upper left", fontsize=6, framealpha=0.7)


def _aligned(series: Series, times: np.ndarray) -> np.ndarray:
    values = np.zeros_like(times)
    values[np.searchsorted(times, series.times)] = np.nan_to_num(series.values)
    return values


def _draw_bars(axes: Axes, series: Sequence[Series], unit: str) -> None:
    bars = axes.barh([one.name for one in series], [one.values[-1] for one in series], alpha=0.65)
    axes.bar_label(bars, [format_value(one.values[-1], unit) for one in series], padding=3)
    axes.margins(x=0.2)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_states(axes: Axes, series: Sequence[Series]) -> None:
    for number, one in enumerate(series):
        active = one.times[one.values > 0]
        ranges = [(start, _STEP_S / 60) for start in active]
        axes.broken_barh(ranges, (number - 0.4, 0.8), alpha=0.35)
    axes.set_yticks(range(len(series)), [one.name[:_MAX_LEGEND_CHARS] for one in series])
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.tick_params(axis="y", direction="in", pad=-6)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))


def format_value(value: float, unit: str) -> str:
    """Returns a number in one of the units of the board."""
    if not math.isfinite(value):
        return "–"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "currencyUSD":
        return f"${value:.3g}"
    base, ending = (1024, "B") if unit == "bytes" else (1000, "")
    for prefix in ("", "k", "M", "G"):
        if abs(value) < base or prefix == "G":
            break
        value /= base
    return f"{value:.3g} {prefix}{ending}".rstrip() + ("/s" if unit == "reqps" else "")


def main() -> None:
    """Parses the arguments and draws."""
    parser = argparse.ArgumentParser(prog="python -m scripts.grafana.picture")
    parser.add_argument("url", help="of Prometheus")
    parser.add_argument("file", type=Path, help="the picture, a .png")
    parser.add_argument("--minutes", type=float, default=5.0, help="(default: 5)")
    parser.add_argument("--end", type=float, help="of the interval, in Unix time (default: now)")
    parser.add_argument("--rows", nargs="*", default=[], help="titles (default: all)")
    parser.add_argument("--title", default="The board's queries, drawn with matplotlib")
    args = parser.parse_args()
    draw(PrometheusRange(args.url, args.minutes, args.end), args.rows, args.title, args.file)


if __name__ == "__main__":
    main()
