"""Prometheus' text format: one page of the service's metrics from the pages of several nodes."""

import re
from collections.abc import Iterable, Iterator

from serve_app.meter import BUCKET, HISTOGRAM_SUFFIXES
from serve_app.metrics import HISTOGRAMS, RAY_PREFIX

_METRIC_PREFIX = f"{RAY_PREFIX}embedserve_"
#: By the name of each sample, the histogram that it belongs to.
_HISTOGRAMS = {
    f"{RAY_PREFIX}{metric.name}{suffix}": metric
    for metric in HISTOGRAMS
    for suffix in HISTOGRAM_SUFFIXES
}
_BOUND = re.compile(r'(?<=[{,])le="([^"]*)",?')
#: Ray gives all series of a name the same labels; the value of those that one lacks is empty.
_NO_BOUND = re.compile(r'(?<=[{,])le="",?')


def merge_pages(pages: Iterable[str]) -> str:
    """Returns the service's metrics of several pages, grouped by metric as Prometheus requires.

    Ray exports the parts of a histogram as gauges; here they are a histogram again.
    """
    samples: dict[str, list[str]] = {}
    headers: dict[str, dict[str, str]] = {}
    for page in pages:
        name = ""
        for line in page.split("\n"):
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, name, _ = line.split(" ", 3)
                headers.setdefault(name, {}).setdefault(kind, line)
            elif line.startswith(_METRIC_PREFIX) and name.startswith(_METRIC_PREFIX):
                samples.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for line in _grouped(samples, headers))


def _grouped(samples: dict[str, list[str]], headers: dict[str, dict[str, str]]) -> Iterator[str]:
    histograms: dict[str, list[str]] = {}
    for name, lines in sorted(samples.items()):
        if name in _HISTOGRAMS:
            complete = (_NO_BOUND.sub("", line) for line in lines)
            histograms.setdefault(_HISTOGRAMS[name].name, []).extend(
                # A bucket without its bound means nothing.
                line
                for line in complete
                if not name.endswith(BUCKET) or _BOUND.search(line)
            )
        else:
            yield from headers[name].values()
            yield from lines
    for metric in HISTOGRAMS:
        if metric.name in histograms:
            yield f"# HELP {RAY_PREFIX}{metric.name} {metric.description}"
            yield f"# TYPE {RAY_PREFIX}{metric.name} histogram"
            yield from sorted(histograms[metric.name], key=_position)


def _position(line: str) -> tuple[str, int, float]:
    """Returns the position of a histogram's sample: by its tags, then buckets, sum and count."""
    bound = _BOUND.search(line)
    name, _, tags = _BOUND.sub("", line).rpartition(" ")[0].partition("{")
    suffix = next(i for i, suffix in enumerate(HISTOGRAM_SUFFIXES) if name.endswith(suffix))
    return tags.rstrip(",}"), suffix, float(bound[1]) if bound else 0.0
