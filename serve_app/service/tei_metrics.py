"""The service's metrics under the names of text-embeddings-inference, for its boards and scalers.

page of the service's metrics → sums over replicas, routes and lanes → page with TEI's names

TEI measures some things for each request that the service measures for each group of texts or each
batch; docs/metrics.md says which.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

from serve_app.meter import BUCKET, COUNT, SUM
from serve_app.metrics import (
    BATCH_DURATION,
    BATCH_SIZE,
    QUEUE_DURATION,
    QUEUED_TEXTS,
    RAY_PREFIX,
    REQUEST_DURATION,
    REQUESTS,
    STAGE_SECONDS,
    TEXT_LENGTH,
    TEXTS,
    Metric,
)
from serve_app.model_spec import ModelSpec

#: TEI's histograms, and those of the service.
_HISTOGRAMS = {
    "te_request_duration": REQUEST_DURATION,
    "te_request_queue_duration": QUEUE_DURATION,
    "te_request_inference_duration": BATCH_DURATION,
    "te_request_input_length": TEXT_LENGTH,
    "te_batch_next_size": BATCH_SIZE,
}
#: TEI has them a second time, for models that embed or score.
_BY_KIND = {
    "duration": REQUEST_DURATION,
    "queue_duration": QUEUE_DURATION,
    "inference_duration": BATCH_DURATION,
}
#: The kinds of errors that TEI distinguishes, by HTTP status.
_ERRORS = {"429": "overloaded", "4": "validation", "5": "inference"}


def tei_page(page: str, specs: Iterable[ModelSpec]) -> str:
    """Returns TEI's metrics in Prometheus' text format, with the tag `model`.

    Args:
        page: the service's metrics in that format.
        specs: the models.
    """
    return "".join(f"{line}\n" for line in _lines(_Samples(page), [*specs]))


class _Samples:
    """The samples of a page."""

    def __init__(self, page: str) -> None:
        self._samples = defaultdict[str, list[tuple[Mapping[str, str], float]]](list)
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def sums(
        self, metric: Metric, suffix: str, tag: str, **selected: str
    ) -> defaultdict[str, float]:
        """Returns the sums of the samples with the selected tags, by the value of a tag."""
        sums = defaultdict[str, float](float)
        for tags, value in self._samples[f"{RAY_PREFIX}{metric.name}{suffix}"]:
            if all(tags.get(name) == wanted for name, wanted in selected.items()):
                sums[tags.get(tag, "")] += value
        return sums

    def buckets(self, metric: Metric, model: str) -> dict[str, float]:
        """Returns the cumulated counts of a model's histogram, by upper bound, ascending."""
        sums = self.sums(metric, BUCKET, "le", model=model)
        return dict(sorted(sums.items(), key=lambda item: float(item[0])))


def _lines(samples: _Samples, specs: list[ModelSpec]) -> Iterator[str]:
    requests = samples.sums(REQUESTS, "_total", "model")
    succeeded = samples.sums(REQUESTS, "_total", "model", status="200")
    names = [*dict.fromkeys([*(spec.name for spec in specs), *requests])]
    yield from _counter("te_request_count", {name: requests[name] for name in names})
    yield from _counter("te_request_success", {name: succeeded[name] for name in names})
    yield "# TYPE te_request_failure counter"
    for name in names:
        for error, n in _failures(samples, name).items():
            yield _line("te_request_failure", n, err=error, model=name)
    yield "# TYPE te_queue_size gauge"
    queued = samples.sums(QUEUED_TEXTS, "", "model")
    for spec in specs:
        yield _line("te_queue_size", queued[spec.name], model=spec.name)
    for tei_name, metric in _HISTOGRAMS.items():
        yield from _histogram(samples, tei_name, metric, names)
    yield from _tokenization(samples, "te_request", names)
    yield from _batch_tokens(samples, names)
    scorers = [spec.name for spec in specs if spec.main_task in ("rerank", "classify")]
    embedders = [spec.name for spec in specs if spec.name not in scorers]
    texts = samples.sums(TEXTS, "_total", "model")
    for prefix, models in (("te_embed", embedders), ("te_predict", scorers)):
        for name in ("count", "success"):  # the texts of failed requests are not counted
            yield from _counter(f"{prefix}_{name}", {model: texts[model] for model in models})
        for name, metric in _BY_KIND.items():
            yield from _histogram(samples, f"{prefix}_{name}", metric, models)
        yield from _tokenization(samples, prefix, models)


def _failures(samples: _Samples, model: str) -> Mapping[str, float]:
    failures = defaultdict[str, float](float)
    for status, n in samples.sums(REQUESTS, "_total", "status", model=model).items():
        error = _ERRORS.get(status) or _ERRORS.get(status[:1])
        if error is not None:
            failures[error] += n
    return failures


def _tokenization(samples: _Samples, prefix: str, models: Iterable[str]) -> Iterator[str]:
    """Yields a histogram without bounds: the service has no buckets of these times."""
    name = f"{prefix}_tokenization_duration"
    seconds = samples.sums(STAGE_SECONDS, "_total", "model", stage="tokenize")
    succeeded = samples.sums(REQUESTS, "_total", "model", status="200")
    yield f"# TYPE {name} histogram"
    for model in models:
        yield from _unbounded(name, seconds[model], succeeded[model], model)


def _batch_tokens(samples: _Samples, models: Iterable[str]) -> Iterator[str]:
    """Yields a histogram without bounds, as `_tokenization` does."""
    tokens = samples.sums(TEXT_LENGTH, SUM, "model")
    batches = samples.sums(BATCH_SIZE, COUNT, "model")
    yield "# TYPE te_batch_next_tokens histogram"
    for model in models:
        yield from _unbounded("te_batch_next_tokens", tokens[model], batches[model], model)


def _unbounded(name: str, total: float, count: float, model: str) -> Iterator[str]:
    yield _line(name + BUCKET, count, model=model, le="+Inf")
    yield _line(name + SUM, total, model=model)
    yield _line(name + COUNT, count, model=model)


def _histogram(
    samples: _Samples, name: str, metric: Metric, models: Iterable[str]
) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    totals = samples.sums(metric, SUM, "model")
    for model in models:
        buckets = samples.buckets(metric, model)
        for bound, count in buckets.items():
            yield _line(name + BUCKET, count, model=model, le=bound)
        if buckets:
            yield _line(name + SUM, totals[model], model=model)
            yield _line(name + COUNT, buckets["+Inf"], model=model)


def _counter(name: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# TYPE {name} counter"
    for model, value in values.items():
        yield _line(name, value, model=model)


def _line(name: str, value: float, **tags: str) -> str:
    pairs = ",".join(f'{tag}="{_escaped(text)}"' for tag, text in tags.items())
    return f"{name}{{{pairs}}} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
