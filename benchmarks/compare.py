"""A comparison of two servers: `embedserve compare`.

Speed is measured in alternating turns, so that drift of the machine affects both servers alike.
Vectors are compared by the cosine of each text's two vectors, and by the overlap of its nearest
neighbors in the two spaces.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from serve_app.types import Float32

from .bench import is_reachable, measure
from .display import Display, format_metrics
from .load import Plan
from .record import make_record, to_json
from .target import Target
from .workloads import WORKLOADS, Workload

_NEIGHBORS = 10
_TEXTS, _TEXTS_PER_REQUEST = 200, 32


def normalize(vectors: Float32) -> Float32:
    """Returns vectors of shape (n, dim) scaled to unit length."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def cosines(first: Float32, second: Float32) -> Float32:
    """Returns the cosine similarity of each row of `first` and that row of `second`, shape (n,)."""
    return np.asarray((normalize(first) * normalize(second)).sum(axis=1))


def neighbor_overlap(first: Float32, second: Float32, k: int = _NEIGHBORS) -> float:
    """Returns the share of each text's k nearest neighbors that is the same in both spaces.

    Args:
        first: vectors of n texts in one space, shape (n, dim).
        second: their vectors in another space, which may have another dimension.
        k: the number of neighbors by cosine; at most n - 1 are used.
    """
    k = min(k, len(first) - 1)
    nearest = []
    for vectors in (normalize(first), normalize(second)):
        similarities = vectors @ vectors.T
        np.fill_diagonal(similarities, -np.inf)
        nearest.append(np.argpartition(-similarities, k - 1, axis=1)[:, :k])
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*nearest, strict=True)]
    return float(np.mean(shared)) / k


def compare(
    first: Target,
    second: Target,
    workload: Workload,
    plan: Plan,
    rounds: int,
    texts: Sequence[str] | None = None,
) -> int:
    """Prints how two servers compare, and the record as a line of JSON.

    Args:
        first: a server.
        second: the server it is compared with; ratios are first to second.
        workload: the requests, for both.
        plan: the load of one turn.
        rounds: the number of turns of each server.
        texts: the texts whose vectors are compared; by default texts of the workload `document`.

    Returns:
        The command's exit status: 1 if a server can't be reached or returns an error.
    """
    if not (is_reachable(first) and is_reachable(second)):
        return 1
    documents = WORKLOADS["document"].requests(0)
    texts = list(texts or islice(chain.from_iterable(documents), _TEXTS))
    try:
        vector_metrics = _compare_vectors(first, second, texts)
    except OSError as error:
        print(f"embedserve: can't compare the vectors: {error}", file=sys.stderr)
        return 1
    metrics = {**_compare_speed(first, second, workload, plan, rounds), **vector_metrics}
    for name, value in metrics.items():
        print(f"{name:>24}  {value}")
    parameters = {
        "workload": workload.name,
        "first": first.describe(),
        "second": second.describe(),
        **plan.describe(),
        "rounds": rounds,
    }
    print(to_json(make_record(parameters, metrics)))
    return 0


def _compare_speed(
    first: Target, second: Target, workload: Workload, plan: Plan, rounds: int
) -> dict[str, object]:
    targets = {"first": first, "second": second}
    rates: dict[str, list[float]] = {name: [] for name in targets}
    p50s_ms: dict[str, list[float]] = {name: [] for name in targets}
    failed = dict.fromkeys(targets, 0)
    with Display(2 * rounds * plan.total_s) as display:
        for turn in range(rounds):
            turn_plan = dataclasses.replace(plan, seed=plan.seed + turn)
            for name, target in targets.items():
                outcome = measure(target, workload, turn_plan, display)
                latencies_s = outcome.latencies_s
                p50_s = float(np.median(latencies_s)) if latencies_s else float("nan")
                rates[name].append(outcome.requests_per_s)
                p50s_ms[name].append(p50_s * 1000)
                failed[name] += sum(outcome.failures.values())
                summary = f"{target.url}  {format_metrics(outcome.summary())}"
                display.finish_step(plan.total_s, summary)
    return {
        "requests_per_s": {n: round(statistics.median(values), 2) for n, values in rates.items()},
        "p50_ms": {n: round(statistics.median(values), 2) for n, values in p50s_ms.items()},
        "failed": failed,
        "rate_ratio": _median_ratio(rates["first"], rates["second"]),
        "p50_ratio": _median_ratio(p50s_ms["first"], p50s_ms["second"]),
    }


def _median_ratio(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the median over turns of the ratio within a turn, which drift doesn't affect."""
    ratios = [a / b for a, b in zip(first, second, strict=True) if b]
    return round(statistics.median(ratios), 3) if ratios else None


def _compare_vectors(first: Target, second: Target, texts: Sequence[str]) -> dict[str, object]:
    first_vectors, second_vectors = _embed(first, texts), _embed(second, texts)
    has_same_shape = first_vectors.shape == second_vectors.shape
    cosine = cosines(first_vectors, second_vectors) if has_same_shape else None
    return {
        "texts_compared": len(texts),
        "dims": [first_vectors.shape[1], second_vectors.shape[1]],
        "cosine_min": None if cosine is None else round(float(cosine.min()), 7),
        "cosine_mean": None if cosine is None else round(float(cosine.mean()), 7),
        "neighbor_overlap": round(neighbor_overlap(first_vectors, second_vectors), 4),
    }


def _embed(target: Target, texts: Sequence[str]) -> Float32:
    starts = range(0, len(texts), _TEXTS_PER_REQUEST)
    return np.concatenate([target.embed(list(texts[i : i + _TEXTS_PER_REQUEST])) for i in starts])
