"""The experiments of `embedserve bench`: their peers, their load points and their schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from .load import Plan
from .peers import (
    embedserve,
    engine_alone,
    fastapi_server,
    floor,
    infinity,
    ray_serve_docs,
    sentence_transformers_in_process,
    tei,
    vllm,
)
from .peers.base import Peer
from .workloads import WORKLOADS, Workload, batch_workload, repeat_workload

SERVERS = (
    embedserve.PEER,
    embedserve.INLINE,
    fastapi_server.PEER,
    ray_serve_docs.PEER,
    infinity.TORCH,
    infinity.OPTIMUM,
    tei.PEER,
    vllm.PEER,
)
#: The servers without variants that a similar server outperforms.
_MAIN_SERVERS = tuple(
    p for p in SERVERS if p not in (embedserve.INLINE, ray_serve_docs.PEER, infinity.TORCH)
)
#: Libraries, measured in process. The vectors of all peers are checked against the first one's.
LIBRARIES = (sentence_transformers_in_process.PEER, engine_alone.PEER)

#: Rates of the experiment `latency` in requests/s: preferred numbers (ISO 3, R5).
_RATES = (20, 50, 80, 125, 200, 315, 500, 800, 1250, 2000)
_FLOOR_RATE = 5000.0
_TIMEOUT_S = 10.0
_OPEN_LOOP_CONNECTIONS = 256


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One load on a server, a point on the x axis of a plot."""

    workload: Workload
    plan: Plan
    x: float
    bulk: int = 0  #: closed-loop clients that send documents during the measurement


@dataclass(frozen=True, slots=True)
class Experiment:
    """Load points that several peers are measured at in turn."""

    name: str
    peers: Sequence[Peer]
    points: Sequence[LoadPoint]
    #: Whether the points are increasing rates. A peer skips the rates above one that saturates it.
    increasing_rate: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often and how long each load point is measured."""

    rounds: int
    seconds: float
    warmup_s: float = 0.5

    def closed_loop(self, connections: int) -> Plan:
        """Returns a plan for clients that wait for each response."""
        return Plan(self.seconds, self.warmup_s, None, connections, _TIMEOUT_S)

    def open_loop(self, rate: float) -> Plan:
        """Returns a plan for requests that arrive at a rate."""
        return Plan(self.seconds, self.warmup_s, rate, _OPEN_LOOP_CONNECTIONS, _TIMEOUT_S)


FULL = Schedule(rounds=5, seconds=3.0)
QUICK = Schedule(rounds=1, seconds=2.0)


def experiments(schedule: Schedule, *, quick: bool) -> list[Experiment]:
    """Returns all experiments in the order in which they run.

    Args:
        schedule: rounds and durations.
        quick: with fewer points, and without the experiment that restarts EmbedServe.
    """
    query, document = WORKLOADS["query"], WORKLOADS["document"]
    lengths = (8, 128) if quick else (8, 32, 128, 250)
    sizes = (1, 16) if quick else (1, 8, 64)
    shares = (0.0, 1.0) if quick else (0.0, 0.5, 0.9, 1.0)
    bulk = (0, 4) if quick else (0, 1, 4)
    rates = _RATES[1::3] if quick else _RATES
    closed, open_ = schedule.closed_loop, schedule.open_loop
    selected = [
        Experiment(
            "floor",
            [floor.PEER],
            [LoadPoint(query, open_(_FLOOR_RATE), _FLOOR_RATE), LoadPoint(query, closed(1), 0)],
        ),
        Experiment(
            "library",
            LIBRARIES,
            [LoadPoint(w, closed(1), i) for i, w in enumerate((query, document))],
        ),
        Experiment(
            "length",
            LIBRARIES,
            [LoadPoint(batch_workload(32, n, n), closed(1), n + 2) for n in lengths],
        ),
        Experiment(
            "server",
            SERVERS,
            [
                LoadPoint(query, closed(1), 1),
                LoadPoint(query, closed(32), 32),
                LoadPoint(document, closed(4), 4),
            ],
        ),
        Experiment(
            "latency",
            SERVERS,
            [LoadPoint(query, open_(rate), rate) for rate in rates],
            increasing_rate=True,
        ),
        Experiment(
            "repeat",
            [embedserve.PEER],
            [LoadPoint(repeat_workload(share), closed(32), share) for share in shares],
        ),
        Experiment(
            "batch",
            _MAIN_SERVERS,
            [LoadPoint(batch_workload(n, 5, 60), closed(4), n) for n in sizes],
        ),
        Experiment("bulk", _MAIN_SERVERS, [LoadPoint(query, open_(20), n, bulk=n) for n in bulk]),
    ]
    if not quick:
        selected.append(
            Experiment(
                "replicas",
                [embedserve.ONE_REPLICA, embedserve.REPLICA_PER_CORE],
                [LoadPoint(query, closed(32), 32), LoadPoint(document, closed(4), 4)],
            )
        )
    return selected
