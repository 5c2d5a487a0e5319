"""REPORT.md and README's table, written from the records of one suite and from nothing else."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .figures import OURS, Figures, number, ratio, spread

_BEGIN, _END = "<!-- benchmark -->\n", "<!-- /benchmark -->"
_CAPTIONS = {
    "latency": "Latency against rate",
    "bulk": "Queries beside bulk",
    "batch": "Texts in a request",
    "length": "Tokens in a text",
    "repeat": "Texts that were asked before",
    "replicas": "Replicas",
}


class Measure(NamedTuple):
    """One figure that servers are compared by."""

    title: str
    experiment: str
    x: float
    key: str
    unit: str
    low: bool = False  #: whether less is better


_SERVED = (
    Measure("one client, p50", "server", 1, "p50_ms", "ms", low=True),
    Measure("32 clients", "server", 32, "requests_per_s", "queries/s"),
    Measure("4 clients, documents", "server", 4, "texts_per_s", "texts/s"),
)
_ALONE = (
    Measure("queries", "library", 0, "texts_per_s", "texts/s"),
    Measure("documents", "library", 1, "texts_per_s", "texts/s"),
)


def report(figures: Figures, pictures: Iterable[str]) -> str:
    """The whole page, in Markdown; `pictures` lie in a folder `pictures` beside it."""
    parts = [
        "# Benchmark",
        _conditions(figures),
        "## Served",
        _queries_and_documents(),
        _table(figures, _SERVED),
        "EmbedServe in multiples of each, more than 1 is better:",
        _ratios(figures, _SERVED, OURS),
        "## EmbedServe against the best of the others",
        _against_the_best(figures),
        *(_picture(figures, name) for name in pictures),
        "## The model alone",
        "In process, without a server: tokenising and computing, in calls of up to 256 texts.",
        _table(figures, _ALONE),
        "## The load generator",
        _floor(figures),
        _left_out(figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_table(figures: Figures) -> str:
    """What stands in README between its marks."""
    machine = figures.first["machine"]
    return (
        f"{_table(figures, _SERVED, memory=False)}\n\n"
        f"Medians of {figures.first['rounds']} alternated runs (least–most) on {machine['cores']} "
        f"cores ({machine['cpu']}), no GPU, all-MiniLM-L6-v2, EmbedServe at bf16, each text a new "
        f"one, {figures.first['at'][:10]}.\n"
    )


def put_into(readme: Path, table: str) -> None:
    """Replaces what stands between the marks of a README.

    Raises:
        ValueError: it has none.
    """
    before, _, rest = readme.read_text("utf-8").partition(_BEGIN)
    _, mark, after = rest.partition(_END)
    if not mark:
        raise ValueError(
            f"{readme} has no place for the table, between {_BEGIN.strip()} and {_END}."
        )
    readme.write_text(f"{before}{_BEGIN}{table}{_END}{after}", "utf-8")


def between_marks(readme: str) -> str:
    """What stands between the marks of a README."""
    return readme.partition(_BEGIN)[2].partition(_END)[0]


def _conditions(figures: Figures) -> str:
    first, machine = figures.first, figures.first["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    elsewhere = [r["elsewhere_cpu"] for r in figures.records if "elsewhere_cpu" in r]
    rounds = (
        f"Figures are medians of {first['rounds']} runs, least and most in brackets"
        if first["rounds"] > 1
        else "One run for each figure: good for a look, not for a comparison"
    )
    return (
        f"Made by `{first['command']}` at commit `{first['commit']}`, {first['at'][:10]}, from "
        f"{len(figures.records)} records. {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}. "
        f"{versions}.\n\n"
        "The servers of an experiment are all up; one at a time is under load, from a generator on "
        "the same machine, and the others are stopped meanwhile (SIGSTOP). What else ran there "
        f"took up to {max(elsewhere):.2f} cores. {rounds}. Runs "
        "alternate between the servers, and each asks them the same new texts, so that no cache "
        "helps. Ratios are taken run by run before their median. The model is all-MiniLM-L6-v2, "
        "at float32, but for EmbedServe, which takes bf16 where the CPU has it. Every server's "
        "vectors were compared with those of sentence-transformers before its speed counted."
    )


def _queries_and_documents() -> str:
    return (
        "A query is one text of 5 to 12 words; a request of documents holds 32 texts of 5 to 60 "
        "words. Closed loop: a client asks again when it is answered. "
        "Memory is that of all processes of a server, shared pages counted once."
    )


def _table(figures: Figures, measures: Sequence[Measure], *, memory: bool = True) -> str:
    heads = [f"{m.title}, {m.unit}" for m in measures]
    heads += ["memory, MiB"] if memory else []
    rows = [["", *heads, "cosine"]]
    at = measures[-1]
    for peer in figures.peers(at.experiment):
        cells = [spread(figures.at(at.experiment, peer, m.x, m.key)) for m in measures]
        if memory:
            used = figures.at(at.experiment, peer, at.x, "pss_mib")
            cells.append("–" if used is None else number(used.median))
        cosine = figures.at(at.experiment, peer, at.x, "cosine_min")
        cells.append("–" if cosine is None else f"{cosine.median:.7f}")
        rows.append([figures.titles[peer], *cells])
    return _markdown(rows)


def _ratios(figures: Figures, measures: Sequence[Measure], ours: str) -> str:
    rows = [["", *(m.title for m in measures)]]
    rows += [
        [figures.titles[peer], *(ratio(_better(figures, m, ours, peer)) for m in measures)]
        for peer in figures.peers(measures[0].experiment)
        if peer != ours
    ]
    return _markdown(rows)


def _better(figures: Figures, measure: Measure, ours: str, other: str) -> float | None:
    """How many times better ours is; below 1 it is worse."""
    m = measure
    if m.low:
        return figures.ratio(m.experiment, other, ours, m.x, m.key)
    return figures.ratio(m.experiment, ours, other, m.x, m.key)


def _against_the_best(figures: Figures) -> str:
    measures: list[tuple[Measure, str]] = [(m, OURS) for m in _SERVED]
    measures += [(m._replace(title=f"the model alone, {m.title}"), "engine") for m in _ALONE]
    for name, title, key, unit, low in (
        ("bulk", "a query beside {:g} bulk clients, p99", "p99_ms", "ms", True),
        ("batch", "{:g} texts in a request", "texts_per_s", "texts/s", False),
    ):
        for x in figures.xs(name, OURS):
            measures.append((Measure(title.format(x), name, x, key, unit, low), OURS))
    rows = [["", "EmbedServe", "the best of the others", "", "times better"]]
    for m, ours in measures:
        best = figures.best(m.experiment, m.x, m.key, low=m.low, without=ours)
        if best is None:
            continue
        mine, theirs = (figures.at(m.experiment, peer, m.x, m.key) for peer in (ours, best))
        times = _better(figures, m, ours, best)
        behind = times is not None and times < 1
        words = f"{ratio(times)} **behind**" if behind else ratio(times)
        rows.append(
            [f"{m.title}, {m.unit}", spread(mine), spread(theirs), figures.titles[best], words]
        )
    return _markdown(rows)


def _picture(figures: Figures, name: str) -> str:
    keys = {
        "latency": ("p99_ms", "p99, ms, by queries/s"),
        "bulk": ("p99_ms", "p99 of a query, ms, by bulk clients"),
        "batch": ("texts_per_s", "texts/s, by texts in a request"),
        "length": ("tokens_per_s", "tokens/s, by tokens in a text"),
        "repeat": ("requests_per_s", "queries/s, by share asked before"),
    }
    parts = [f"## {_CAPTIONS[name]}", f"![{_CAPTIONS[name]}](pictures/{name}.svg)"]
    if name in keys:
        parts.append(_series(figures, name, *keys[name]))
    else:
        measures = [m._replace(experiment=name) for m in _SERVED[1:]]
        parts.append(_table(figures, measures))
    return "\n\n".join(parts)


def _series(figures: Figures, name: str, key: str, title: str) -> str:
    peers = figures.peers(name)
    xs = sorted({x for peer in peers for x in figures.xs(name, peer)})
    rows = [[title, *(f"{x:.0%}" if name == "repeat" else f"{x:g}" for x in xs)]]
    rows += [
        [
            figures.titles[peer],
            *(
                spread(figures.at(name, peer, x, key) if x in figures.xs(name, peer) else None)
                for x in xs
            ),
        ]
        for peer in peers
    ]
    return _markdown(rows)


def _floor(figures: Figures) -> str:
    rate = max(figures.xs("floor", "floor"))
    found = {
        key: figures.at("floor", "floor", rate, key)
        for key in (
            "requests_per_s",
            "p50_ms",
            "p99_ms",
            "generator_cpu_share",
            "generator_lag_p99_ms",
        )
    }
    alone = figures.at("floor", "floor", 0, "p50_ms")
    head = ["asked", "answered/s", "p50, ms", "p99, ms", "CPU of the generator, cores", "lag, ms"]
    row = [f"{rate:,.0f} requests/s", *(spread(value) for value in found.values())]
    return (
        "Against a server that answers without looking. No latency above can be less than this. "
        "The lag is how late the generator itself was, at its 99th percentile. One client that "
        f"waits for each answer sees a p50 of {spread(alone)} ms.\n\n{_markdown([head, row])}"
    )


def _left_out(figures: Figures) -> str:
    left_out = figures.left_out()
    if not left_out:
        return ""
    lines = [f"- {peer}: {why.splitlines()[-1]}" for peer, why in left_out.items()]
    return "## Not measured\n\n" + "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])
