"""Two servers side by side: `embedserve compare`.

Speed in alternated turns, so that a machine whose speed drifts is fair to both; and vectors: the
cosine of each text's two, and how many of its nearest neighbours both servers agree on.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np

from .bench import measure, reachable
from .display import Display, figures_line
from .load import Plan
from .record import line, record
from .target import Target
from .workloads import WORKLOADS, Workload
from serve_app.types import Float32

_NEIGHBOURS = 10
_PER_REQUEST = 32


def unit(vectors: Float32) -> Float32:
    """Vectors of shape (n, dim) at length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def cosines(first: Float32, second: Float32) -> Float32:
    """The cosine of each row of `first` with the same row of `second`, shape (n,)."""
    return np.asarray((unit(first) * unit(second)).sum(axis=1))


def neighbours_agreed(first: Float32, second: Float32, k: int = _NEIGHBOURS) -> float:
    """The share of each text's k nearest others, by cosine, that are the same in both spaces.

    The two may be of different width. k is at most n - 1.
    """
    k = min(k, len(first) - 1)
    nearest = []
    for vectors in (unit(first), unit(second)):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
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
    """Shows how two servers compare, as ratios; ends with the record as one line of JSON.

    Args:
        first: what is compared.
        second: what it is compared with.
        workload: the load for both.
        plan: how much of it; the same for both.
        rounds: turns for each, in alternation.
        texts: what the vectors are compared on; None: texts of the workload `document`.

    Returns:
        The command's exit status: 1 when one of them isn't there or refuses.
    """
    if not (reachable(first) and reachable(second)):
        return 1
    documents = WORKLOADS["document"].requests(0)
    sample = list(texts or islice(chain.from_iterable(documents), 200))
    try:
        vectors = _vectors(first, second, sample)
    except OSError as error:
        print(f"embedserve: no vectors to compare: {error}", file=sys.stderr)
        return 1
    figures = {**_speeds(first, second, workload, plan, rounds), **vectors}
    for name, value in figures.items():
        print(f"{name:>24}  {value}")
    asked = {
        "workload": workload.name,
        "first": first.describe(),
        "second": second.describe(),
        **plan.describe(),
        "rounds": rounds,
    }
    print(line(record(asked, figures)))
    return 0


def _speeds(
    first: Target, second: Target, workload: Workload, plan: Plan, rounds: int
) -> dict[str, object]:
    runs: dict[str, list[tuple[float, float]]] = {"first": [], "second": []}
    failed = dict.fromkeys(runs, 0)
    with Display(2 * rounds * plan.seconds) as display:
        for turn in range(rounds):
            for name, target in (("first", first), ("second", second)):
                again = dataclasses.replace(plan, seed=plan.seed + turn)
                outcome = measure(target, workload, again, display)
                times_ms = [seconds * 1000 for seconds in outcome.latencies]
                p50_ms = float(np.median(times_ms)) if times_ms else float("nan")
                runs[name].append((outcome.requests_per_s, p50_ms))
                failed[name] += sum(outcome.failures.values())
                display.done(plan.seconds, f"{target.url}  {figures_line(outcome.summary())}")
    rates = {name: [rate for rate, _ in of] for name, of in runs.items()}
    p50s = {name: [p50 for _, p50 in of] for name, of in runs.items()}
    return {
        "requests_per_s": {name: round(statistics.median(of), 2) for name, of in rates.items()},
        "p50_ms": {name: round(statistics.median(of), 2) for name, of in p50s.items()},
        "failed": failed,
        "rate_ratio": _ratio(rates["first"], rates["second"]),
        "p50_ratio": _ratio(p50s["first"], p50s["second"]),
    }


def _ratio(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The median of the ratios of turns that stood beside each other."""
    ratios = [a / b for a, b in zip(first, second, strict=True) if b]
    return round(statistics.median(ratios), 3) if ratios else None


def _vectors(first: Target, second: Target, texts: list[str]) -> dict[str, object]:
    one, other = (
        np.concatenate(
            [
                target.vectors(texts[i : i + _PER_REQUEST])
                for i in range(0, len(texts), _PER_REQUEST)
            ]
        )
        for target in (first, second)
    )
    same_width = one.shape == other.shape
    cosine = cosines(one, other) if same_width else None
    return {
        "texts_compared": len(texts),
        "dims": [one.shape[1], other.shape[1]],
        "cosine_min": None if cosine is None else round(float(cosine.min()), 7),
        "cosine_mean": None if cosine is None else round(float(cosine.mean()), 7),
        "neighbours_agreed": round(neighbours_agreed(one, other), 4),
    }
