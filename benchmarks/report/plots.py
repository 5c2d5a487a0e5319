"""The pictures: each with one message for a title, units, and labels where the lines are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .figures import OURS, Figures, number

#: Colours that the colour-blind can tell apart (Okabe and Ito), ours the strongest.
_OURS = "#0072B2"
_COLOURS = {
    "embedserve-inline": "#7FB2E5",
    "fastapi": "#D55E00",
    "sentence-transformers": "#D55E00",
    "infinity-optimum": "#009E73",
    "infinity-torch": "#9A6A00",
    "ray-serve": "#CC79A7",
    "tei": "#56B4E9",
    "vllm": "#555555",
}
#: Between two labels, as shares of the axes: closer than that in both, they would meet.
_NEAR, _GAP = 0.3, 0.06
_TOP = 0.96  # of a label whose line leaves the picture
_TITLE_LETTERS = 72

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "embedserve",  # else each drawing of the same picture differs
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
    }
)

Draw = Callable[[Axes], None]


class End(NamedTuple):
    """Where a line ends, and what stands there."""

    x: float
    y: float
    text: str
    colour: str


def _save(folder: Path, name: str, title: str, subtitle: str, draw: Draw) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(subtitle, loc="left", fontsize=9.5, color="#444444")
    figure.suptitle(
        "\n".join(wrap(title, _TITLE_LETTERS)), x=0.01, ha="left", fontsize=12.5, fontweight="bold"
    )
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})


def pictures(figures: Figures, folder: Path) -> list[str]:
    """Draws every picture that there are records for, as SVG and PNG; their names."""
    drawn = []
    for name, draw in _PICTURES.items():
        if figures.peers(name):
            draw(figures, folder)
            drawn.append(name)
    return drawn


def _latency(figures: Figures, folder: Path) -> None:
    limit_ms = 100.0
    borne = {peer: _highest(figures, peer, limit_ms) for peer in figures.peers("latency")}
    others = {peer: rate for peer, rate in borne.items() if peer != OURS}
    best = max(others, key=others.__getitem__, default=OURS)
    title = (
        f"99 of 100 queries within {limit_ms:.0f} ms: EmbedServe up to {borne.get(OURS, 0):g} a "
        f"second, {_name(figures, best)} up to {borne[best]:g}"
    )

    def draw(axes: Axes) -> None:
        ends = _lines(axes, figures, "latency", "p99_ms")
        axes.axhline(limit_ms, color="#999999", linewidth=0.8, linestyle="--", zorder=0)
        _log_axis(axes, "x", (20, 50, 100, 200, 500, 1000, 2000, 5000))
        _log_axis(axes, "y", (10, 20, 50, 100, 200, 500, 1000, 2000))
        axes.set_ylim(top=3000)
        axes.set_xlabel("queries that come in a second")
        axes.set_ylabel("99th percentile, ms")
        _label(axes, ends)

    _save(
        folder,
        "latency",
        title,
        "Open loop, timed from when a query was due. A line ends where its server is swamped.",
        draw,
    )


def _against(
    figures: Figures, experiment: str, x: float, key: str, *, low: bool
) -> tuple[str, str, str]:
    """The best of the others, our figure, and its figure."""
    best = figures.best(experiment, x, key, low=low) or OURS
    ours, other = (figures.at(experiment, peer, x, key) for peer in (OURS, best))
    assert ours is not None, "Ours was measured there. This is a bug."
    assert other is not None, "The best has figures. This is a bug."
    return best, number(ours.median), number(other.median)


def _name(figures: Figures, peer: str) -> str:
    """A peer's title that no line break divides."""
    return figures.titles[peer].replace(" ", "\u00a0")


def _highest(figures: Figures, peer: str, limit_ms: float) -> float:
    """The highest rate whose p99 is under a limit, as are those of all lower rates."""
    highest = 0.0
    for x in figures.xs("latency", peer):
        p99 = figures.at("latency", peer, x, "p99_ms")
        if p99 is None or p99.median > limit_ms:
            break
        highest = x
    return highest


def _batch(figures: Figures, folder: Path) -> None:
    most = max(figures.xs("batch", OURS))
    best, ours, other = _against(figures, "batch", most, "texts_per_s", low=False)
    title = (
        f"With {most:g} texts in a request EmbedServe embeds {ours} texts/s, "
        f"{_name(figures, best)} {other}"
    )

    def draw(axes: Axes) -> None:
        ends = _lines(axes, figures, "batch", "texts_per_s")
        _log_axis(axes, "x", figures.xs("batch", OURS))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("texts in a request")
        axes.set_ylabel("texts/s")
        _label(axes, ends)

    _save(folder, "batch", title, "4 clients; texts of 5 to 60 words.", draw)


def _length(figures: Figures, folder: Path) -> None:
    ours, reference = "engine", "sentence-transformers"
    xs = figures.xs("length", ours)
    ratios = [figures.ratio("length", ours, reference, x, "tokens_per_s") or 0 for x in xs]
    title = (
        f"Texts of {min(xs):g} to {max(xs):g} tokens: our engine does {min(ratios):.2f} to "
        f"{max(ratios):.2f} times the tokens of sentence-transformers"
    )

    def draw(axes: Axes) -> None:
        ends = _lines(axes, figures, "length", "tokens_per_s", ours=ours)
        _log_axis(axes, "x", xs)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
        axes.set_xlabel("tokens in a text")
        axes.set_ylabel("tokens/s")
        _label(axes, ends)

    _save(folder, "length", title, "In process, without a server; tokenising included.", draw)


def _bulk(figures: Figures, folder: Path) -> None:
    clients = max(figures.xs("bulk", OURS))
    best, ours, other = _against(figures, "bulk", clients, "p99_ms", low=True)
    title = (
        f"Beside {clients:g} bulk clients EmbedServe answers 99 of 100 queries within "
        f"{ours}\u00a0ms, {_name(figures, best)} within {other}"
    )

    def draw(axes: Axes) -> None:
        ends = _lines(axes, figures, "bulk", "p99_ms")
        axes.set_xticks(figures.xs("bulk", OURS))
        _log_axis(axes, "y", (10, 20, 50, 100, 200, 500, 1000, 2000, 5000))
        axes.set_xlabel("clients that send 32 documents a request, one request after the other")
        axes.set_ylabel("99th percentile, ms")
        _label(axes, ends)

    _save(folder, "bulk", title, "20 queries a second, timed from when each was due.", draw)


def _repeat(figures: Figures, folder: Path) -> None:
    xs = figures.xs("repeat", OURS)
    rates = [figures.at("repeat", OURS, x, "requests_per_s") for x in xs]
    medians = [rate.median for rate in rates if rate is not None]
    title = (
        f"Texts that were asked before are answered {medians[-1] / medians[0]:.1f} times as fast: "
        f"{number(medians[-1])} a second, not {number(medians[0])}"
    )

    def draw(axes: Axes) -> None:
        axes.plot(xs, medians, color=_OURS, linewidth=2.4, marker="o")
        for x, value in zip(xs, medians, strict=True):
            axes.annotate(
                number(value), (x, value), (-5, 6), textcoords="offset points", ha="right"
            )
        axes.set_xlim(-0.08, 1.04)
        axes.set_ylim(0, max(medians) * 1.15)
        axes.set_xticks(xs, [f"{x:.0%}" for x in xs])
        axes.set_xlabel("queries that were asked before")
        axes.set_ylabel("queries/s")

    _save(folder, "repeat", title, "EmbedServe, 32 clients, one text of 5 to 12 words each.", draw)


def _replicas(figures: Figures, folder: Path) -> None:
    one, many = f"{OURS}-1", f"{OURS}-n"
    bars = {
        "queries, 32 clients": (32.0, "requests_per_s"),
        "documents, 4 clients": (4.0, "texts_per_s"),
    }
    found = figures.at("replicas", many, 32.0, "replicas")
    replicas = 0 if found is None else int(found.median)
    ratios = {
        name: figures.ratio("replicas", many, one, x, key) or 0 for name, (x, key) in bars.items()
    }
    words = [f"{ratio:.2f} times the {name.split(',')[0]}" for name, ratio in ratios.items()]
    title = f"{replicas} replicas of one core do {' and '.join(words)} of one"

    def draw(axes: Axes) -> None:
        axes.barh(list(ratios), list(ratios.values()), color=_OURS, height=0.4)
        for i, value in enumerate(ratios.values()):
            axes.annotate(f"{value:.2f}×", (value, i), (6, -4), textcoords="offset points")
        axes.axvline(1, color="#555555", linewidth=1)
        axes.set_xlim(0, max(*ratios.values(), float(replicas)) * 1.1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("throughput, in multiples of one replica's")

    subtitle = f"On {figures.first['machine']['cores']} cores, which the load generator shares."
    _save(folder, "replicas", title, subtitle, draw)


_PICTURES: dict[str, Callable[[Figures, Path], None]] = {
    "latency": _latency,
    "bulk": _bulk,
    "batch": _batch,
    "length": _length,
    "repeat": _repeat,
    "replicas": _replicas,
}


def _lines(axes: Axes, figures: Figures, experiment: str, key: str, ours: str = OURS) -> list[End]:
    """One line for each peer, the spread behind it; where the lines end."""
    ends = []
    for peer in sorted(figures.peers(experiment), key=lambda name: name != ours):
        colour = _COLOURS.get(peer, _OURS)
        points = {x: figures.at(experiment, peer, x, key) for x in figures.xs(experiment, peer)}
        known = {x: spread for x, spread in points.items() if spread is not None}
        xs = list(known)
        width = 2.6 if peer == ours else 1.5
        axes.plot(
            xs,
            [spread.median for spread in known.values()],
            color=colour,
            linewidth=width,
            marker="o",
            markersize=width + 1.5,
            zorder=3 if peer == ours else 2,
        )
        axes.fill_between(
            xs,
            [spread.least for spread in known.values()],
            [spread.most for spread in known.values()],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
        ends.append(End(xs[-1], known[xs[-1]].median, figures.titles[peer], colour))
    return ends


def _label(axes: Axes, ends: Sequence[End]) -> None:
    """Names where the lines end; those that would meet are pushed apart. Last: scales count."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed: list[tuple[float, float]] = []
    for end in sorted(ends, key=lambda end: -end.y):
        x, y = np.minimum(to_axes.transform((end.x, end.y)), (1.0, _TOP))
        for other_x, other_y in placed:
            if abs(other_x - x) < _NEAR and y > other_y - _GAP:
                y = other_y - _GAP
        placed.append((x, y))
        axes.annotate(
            end.text,
            (x, y),
            (8, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=end.colour,
            va="center",
            fontsize=9.5,
        )


def _log_axis(axes: Axes, which: str, ticks: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers on it."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
