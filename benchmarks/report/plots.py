"""The plots of the report: the title states the result, each line is labeled at its end."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .results import EMBEDSERVE, SuiteResults, format_number

#: A colorblind-safe palette (Okabe and Ito), with the strongest color for EmbedServe.
_EMBEDSERVE_COLOR = "#0072B2"
_COLORS = {
    "embedserve-colocated": "#7FB2E5",
    "embedserve-standalone": "#004C78",
    "fastapi": "#D55E00",
    "sentence-transformers": "#D55E00",
    "infinity-optimum": "#009E73",
    "infinity-torch": "#9A6A00",
    "mosec": "#E69F00",
    "ray-serve": "#CC79A7",
    "tei": "#56B4E9",
    "vllm": "#555555",
}
#: Labels that are closer than this in both directions, as shares of the axes, would overlap.
_MIN_DISTANCE_X, _MIN_DISTANCE_Y = 0.42, 0.06
_MAX_LABEL_Y = 0.96
_TITLE_CHARS = 72

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "embedserve",  # makes the ids in the SVG reproducible
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
}

mpl.use("svg")

Draw = Callable[[Axes], None]


class Label(NamedTuple):
    """A label at the end of a line, in data coordinates."""

    x: float
    y: float
    text: str
    color: str


def _save_plot(folder: Path, name: str, title: str, subtitle: str, draw: Draw) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(subtitle, loc="left", fontsize=9.5, color="#444444")
    figure.suptitle(
        "\n".join(wrap(title, _TITLE_CHARS)), x=0.01, ha="left", fontsize=12.5, fontweight="bold"
    )
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def draw_plots(results: SuiteResults, folder: Path) -> list[str]:
    """Draws all plots that have records, as SVG and PNG, and returns their names."""
    drawn = [name for name in _PLOTS if results.peers(name)]
    with mpl.rc_context(_STYLE):
        for name in drawn:
            _PLOTS[name](results, folder)
    return drawn


def _latency(results: SuiteResults, folder: Path) -> None:
    limit_ms = 100.0
    highest_rates = {
        peer: _highest_rate(results, peer, limit_ms) for peer in results.peers("latency")
    }
    others = {peer: rate for peer, rate in highest_rates.items() if not peer.startswith(EMBEDSERVE)}
    best = max(others, key=others.__getitem__, default=EMBEDSERVE)
    rate = highest_rates.get(EMBEDSERVE, 0)
    title = (
        f"p99 within {limit_ms:.0f} ms: EmbedServe up to {rate:g} queries/s, "
        f"{_title(results, best)} up to {highest_rates[best]:g}"
    )

    def draw(axes: Axes) -> None:
        labels = _draw_lines(axes, results, "latency", "p99_ms")
        axes.axhline(limit_ms, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        _log_axis(axes, "x", (20, 50, 100, 200, 500, 1000, 2000, 5000))
        _log_axis(axes, "y", (10, 20, 50, 100, 200, 500, 1000, 2000))
        axes.set_ylim(top=3000)
        axes.set_xlabel("queries/s sent")
        axes.set_ylabel("99th percentile, ms")
        _draw_labels(axes, labels)

    _save_plot(
        folder,
        "latency",
        title,
        "Open loop, timed from when each query was due. A line ends where its server is saturated.",
        draw,
    )


def _compare_with_best(
    results: SuiteResults, experiment: str, x: float, key: str, *, lower_is_better: bool
) -> tuple[str, str, str]:
    """Returns the best other peer, the metric of EmbedServe and the metric of that peer."""
    best = results.best_peer(experiment, x, key, lower_is_better=lower_is_better) or EMBEDSERVE
    embedserve, other = (results.spread(experiment, peer, x, key) for peer in (EMBEDSERVE, best))
    assert embedserve is not None, "EmbedServe runs in every experiment. This is a bug."
    assert other is not None, "The best peer was measured. This is a bug."
    return best, format_number(embedserve.median), format_number(other.median)


def _title(results: SuiteResults, peer: str) -> str:
    """Returns a peer's title with non-breaking spaces."""
    return results.titles[peer].replace(" ", "\u00a0")


def _highest_rate(results: SuiteResults, peer: str, limit_ms: float) -> float:
    """Returns the highest rate up to which p99 stays within a limit."""
    highest = 0.0
    for x in results.x_values("latency", peer):
        p99 = results.spread("latency", peer, x, "p99_ms")
        if p99 is None or p99.median > limit_ms:
            break
        highest = x
    return highest


def _batch(results: SuiteResults, folder: Path) -> None:
    size = max(results.x_values("batch", EMBEDSERVE))
    best, value, other = _compare_with_best(
        results, "batch", size, "texts_per_s", lower_is_better=False
    )
    title = (
        f"With {size:g} texts per request EmbedServe embeds {value} texts/s, "
        f"{_title(results, best)} {other}"
    )

    def draw(axes: Axes) -> None:
        labels = _draw_lines(axes, results, "batch", "texts_per_s")
        _log_axis(axes, "x", results.x_values("batch", EMBEDSERVE))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("texts per request")
        axes.set_ylabel("texts/s")
        _draw_labels(axes, labels)

    _save_plot(folder, "batch", title, "4 clients; texts of 5 to 60 words.", draw)


def _length(results: SuiteResults, folder: Path) -> None:
    engine, reference = "engine", "sentence-transformers"
    xs = results.x_values("length", engine)
    ratios = [results.ratio("length", engine, reference, x, "tokens_per_s") or 0 for x in xs]
    title = (
        f"Texts of {min(xs):g} to {max(xs):g} tokens: our engine is {min(ratios):.2f} to "
        f"{max(ratios):.2f} times as fast as sentence-transformers"
    )

    def draw(axes: Axes) -> None:
        labels = _draw_lines(axes, results, "length", "tokens_per_s", highlight=engine)
        _log_axis(axes, "x", xs)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        axes.set_xlabel("tokens per text")
        axes.set_ylabel("tokens/s")
        _draw_labels(axes, labels)

    _save_plot(
        folder, "length", title, "In process, without a server; tokenization included.", draw
    )


def _bulk(results: SuiteResults, folder: Path) -> None:
    clients = max(results.x_values("bulk", EMBEDSERVE))
    best, value, other = _compare_with_best(
        results, "bulk", clients, "p99_ms", lower_is_better=True
    )
    title = (
        f"With {clients:g} bulk clients, p99 of queries: EmbedServe {value}\u00a0ms, "
        f"{_title(results, best)} {other}\u00a0ms"
    )

    def draw(axes: Axes) -> None:
        labels = _draw_lines(axes, results, "bulk", "p99_ms")
        axes.set_xticks(results.x_values("bulk", EMBEDSERVE))
        _log_axis(axes, "y", (10, 20, 50, 100, 200, 500, 1000, 2000, 5000))
        axes.set_xlabel("bulk clients, each with one request of 32 documents in flight")
        axes.set_ylabel("99th percentile, ms")
        _draw_labels(axes, labels)

    _save_plot(
        folder,
        "bulk",
        title,
        "Open loop at 20 queries/s, timed from when each query was due.",
        draw,
    )


def _repeat(results: SuiteResults, folder: Path) -> None:
    xs = results.x_values("repeat", EMBEDSERVE)
    rates = [results.spread("repeat", EMBEDSERVE, x, "requests_per_s") for x in xs]
    medians = [rate.median for rate in rates if rate is not None]
    title = (
        f"Cached queries are {medians[-1] / medians[0]:.1f} times as fast: "
        f"{format_number(medians[-1])} instead of {format_number(medians[0])} queries/s"
    )

    def draw(axes: Axes) -> None:
        axes.plot(xs, medians, color=_EMBEDSERVE_COLOR, linewidth=2.4, marker="o")
        for x, value in zip(xs, medians, strict=True):
            axes.annotate(
                format_number(value), (x, value), (-5, 6), textcoords="offset points", ha="right"
            )
        axes.set_xlim(-0.08, 1.04)
        axes.set_ylim(0, max(medians) * 1.15)
        axes.set_xticks(xs, [f"{x:.0%}" for x in xs])
        axes.set_xlabel("share of queries that repeat")
        axes.set_ylabel("queries/s")

    _save_plot(
        folder, "repeat", title, "EmbedServe, 32 clients, one text of 5 to 12 words each.", draw
    )


def _replicas(results: SuiteResults, folder: Path) -> None:
    single, scaled = f"{EMBEDSERVE}-1", f"{EMBEDSERVE}-n"
    bars = {
        "queries, 32 clients": (32.0, "requests_per_s"),
        "documents, 4 clients": (4.0, "texts_per_s"),
    }
    spread = results.spread("replicas", scaled, 32.0, "replicas")
    replicas = 0 if spread is None else int(spread.median)
    ratios = {
        name: results.ratio("replicas", scaled, single, x, key) or 0
        for name, (x, key) in bars.items()
    }
    gains = [f"{ratio:.2f} times the {name.split(',')[0]}" for name, ratio in ratios.items()]
    title = f"{replicas} replicas of one core: {' and '.join(gains)} of one"

    def draw(axes: Axes) -> None:
        axes.barh(list(ratios), list(ratios.values()), color=_EMBEDSERVE_COLOR, height=0.4)
        for i, value in enumerate(ratios.values()):
            axes.annotate(f"{value:.2f}×", (value, i), (6, -4), textcoords="offset points")
        axes.axvline(1, color="#555555", linewidth=1)
        axes.set_xlim(0, max(*ratios.values(), float(replicas)) * 1.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("throughput relative to one replica")

    subtitle = f"On {results.first['machine']['cores']} cores, shared with the load generator."
    _save_plot(folder, "replicas", title, subtitle, draw)


_PLOTS: dict[str, Callable[[SuiteResults, Path], None]] = {
    "latency": _latency,
    "bulk": _bulk,
    "batch": _batch,
    "length": _length,
    "repeat": _repeat,
    "replicas": _replicas,
}


def _draw_lines(
    axes: Axes, results: SuiteResults, experiment: str, key: str, highlight: str = EMBEDSERVE
) -> list[Label]:
    """Draws the medians of each peer as a line over their spread, and returns the labels."""
    labels = []
    for peer in sorted(results.peers(experiment), key=lambda name: name != highlight):
        color = _COLORS.get(peer, _EMBEDSERVE_COLOR)
        points = {
            x: results.spread(experiment, peer, x, key) for x in results.x_values(experiment, peer)
        }
        spreads = {x: spread for x, spread in points.items() if spread is not None}
        xs = list(spreads)
        width = 2.6 if peer == highlight else 1.5
        axes.plot(
            xs,
            [spread.median for spread in spreads.values()],
            color=color,
            linewidth=width,
            marker="o",
            markersize=width + 1.5,
            zorder=3 if peer == highlight else 2,
        )
        axes.fill_between(
            xs,
            [spread.minimum for spread in spreads.values()],
            [spread.maximum for spread in spreads.values()],
            color=color,
            alpha=0.12,
            linewidth=0,
        )
        labels.append(Label(xs[-1], spreads[xs[-1]].median, results.titles[peer], color))
    return labels


def _draw_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Draws labels without overlaps. The scales of the axes must be final."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed: list[tuple[float, float]] = []
    for label in sorted(labels, key=lambda label: -label.y):
        x, y = np.minimum(to_axes.transform((label.x, label.y)), (1.0, _MAX_LABEL_Y))
        for other_x, other_y in placed:
            if abs(other_x - x) < _MIN_DISTANCE_X and y > other_y - _MIN_DISTANCE_Y:
                y = other_y - _MIN_DISTANCE_Y
        placed.append((x, y))
        axes.annotate(
            label.text,
            (x, y),
            (8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=label.color,
            va="center",
            fontsize=9.5,
        )


def _log_axis(axes: Axes, name: str, ticks: Sequence[float]) -> None:
    """Makes an axis logarithmic, with ticks as plain numbers."""
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
