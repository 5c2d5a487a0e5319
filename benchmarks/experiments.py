"""The experiments of `embedserve bench`: their peers, their load points and their schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from .load import Plan
from .peers import (
    embedserve,
    engine_in_process,
    fastapi_server,
    floor,
    infinity,
    mosec,
    ray_serve_docs,
    sentence_transformers_in_process,
    tei,
    vllm,
)
from .peers.base import Peer
from .workloads import WORKLOADS, Workload, batch_workload, cached_workload, repeat_workload

SERVERS = (
    embedserve.PEER,
    embedserve.COLOCATED,
    embedserve.STANDALONE,
    fastapi_server.PEER,
    mosec.PEER,
    ray_serve_docs.PEER,
    infinity.TORCH,
    infinity.OPTIMUM,
    tei.PEER,
    vllm.PEER,
)
#: The servers without variants that a similar server outperforms.
_MAIN_SERVERS = (embedserve.PEER, fastapi_server.PEER, infinity.OPTIMUM, tei.PEER, vllm.PEER)
#: Libraries, measured in process. The vectors of all peers are checked against the first one's.
LIBRARIES = (sentence_transformers_in_process.PEER, engine_in_process.PEER)

#: Rates of the experiment `latency` in requests/s: preferred numbers (ISO 3, R5).
_RATES = (20, 50, 80, 125, 200, 315, 500, 800, 1250, 2000)
_FLOOR_RATE = 5000.0
_TIMEOUT_S = 10.0
_OPEN_LOOP_CONNECTIONS = 256
_CACHED_TEXTS = 1024


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One load on a server, a point on the x axis of a plot."""

    workload: Workload
    plan: Plan
    x: float
    bulk: int = 0  #: closed-loop clients that send documents during the measurement
    peers: Sequence[Peer] | None = None  #: of the experiment's peers; None: all


@dataclass(frozen=True, slots=True)
class Experiment:
    """Load points that several peers are measured at in turn."""

    name: str
    peers: Sequence[Peer]
    points: Sequence[LoadPoint]
    #: Whether the points are increasing rates. A peer skips the rates above one that saturates it.
    increasing_rate: bool = False

    def peers_at(self, point: LoadPoint) -> list[Peer]:
        """Returns the peers that are measured at a point."""
        return [p for p in self.peers if point.peers is None or p in point.peers]


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
CHECK = Schedule(rounds=5, seconds=2.5)


def experiments(schedule: Schedule, *, quick: bool) -> list[Experiment]:
    """Returns all experiments in the order in which they run.

    Args:
        schedule: rounds and durations.
        quick: with fewer points, and without the experiment that restarts EmbedServe.
    """
    return [
        *_in_process_experiments(schedule, quick=quick),
        *_server_experiments(schedule, quick=quick),
        *_batch_and_bulk_experiments(schedule, quick=quick),
        *([] if quick else [_replica_experiment(schedule)]),
    ]


def _in_process_experiments(schedule: Schedule, *, quick: bool) -> list[Experiment]:
    query, document = WORKLOADS["query"], WORKLOADS["document"]
    floor_points = [
        LoadPoint(query, schedule.open_loop(_FLOOR_RATE), _FLOOR_RATE),
        LoadPoint(query, schedule.closed_loop(1), 0),
    ]
    plan = schedule.closed_loop(1)
    lengths = (8, 128) if quick else (8, 32, 128, 250)
    length_points = [LoadPoint(batch_workload(32, n, n), plan, n + 2) for n in lengths]
    return [
        Experiment("floor", [floor.PEER], floor_points),
        Experiment("library", LIBRARIES, [LoadPoint(query, plan, 0), LoadPoint(document, plan, 1)]),
        Experiment("length", LIBRARIES, length_points),
    ]


def _server_experiments(schedule: Schedule, *, quick: bool) -> list[Experiment]:
    query, document = WORKLOADS["query"], WORKLOADS["document"]
    rates = _RATES[1::3] if quick else _RATES
    shares = (0.0, 1.0) if quick else (0.0, 0.5, 0.9, 1.0)
    server_points = [
        LoadPoint(query, schedule.closed_loop(1), 1),
        LoadPoint(query, schedule.closed_loop(32), 32),
        LoadPoint(document, schedule.closed_loop(4), 4),
    ]
    latency_points = [LoadPoint(query, schedule.open_loop(rate), rate) for rate in rates]
    repeat_points = [
        LoadPoint(repeat_workload(share), schedule.closed_loop(32), share) for share in shares
    ]
    return [
        Experiment("server", SERVERS, server_points),
        Experiment("latency", SERVERS, latency_points, increasing_rate=True),
        Experiment("repeat", [embedserve.PEER], repeat_points),
    ]


def _batch_and_bulk_experiments(schedule: Schedule, *, quick: bool) -> list[Experiment]:
    sizes = (1, 16) if quick else (1, 8, 64)
    clients = (0, 4) if quick else (0, 1, 4)
    batch_plan, bulk_plan = schedule.closed_loop(4), schedule.open_loop(20)
    batch_points = [LoadPoint(batch_workload(n, 5, 60), batch_plan, n) for n in sizes]
    bulk_points = [LoadPoint(WORKLOADS["query"], bulk_plan, n, bulk=n) for n in clients]
    return [
        Experiment("batch", _MAIN_SERVERS, batch_points),
        Experiment("bulk", _MAIN_SERVERS, bulk_points),
    ]


def _replica_experiment(schedule: Schedule) -> Experiment:
    points = [
        LoadPoint(WORKLOADS["query"], schedule.closed_loop(32), 32),
        LoadPoint(WORKLOADS["document"], schedule.closed_loop(4), 4),
    ]
    return Experiment("replicas", [embedserve.ONE_REPLICA, embedserve.REPLICA_PER_CORE], points)


#: `x` of the points of `check_experiments` that have no number of their own.
UNCACHED, BULK_ALONE = 0.0, -4.0


def check_experiments(schedule: Schedule, baseline: Sequence[Peer] = ()) -> list[Experiment]:
    """Returns the experiments that the thresholds need.

    Args:
        schedule: rounds and durations.
        baseline: other versions of EmbedServe, measured like this one.
    """
    query, document = WORKLOADS["query"], WORKLOADS["document"]
    ours = (embedserve.PEER, embedserve.COLOCATED, embedserve.STANDALONE, *baseline)
    shared_hits = (embedserve.SHARED_HITS, embedserve.COLOCATED_SHARED_HITS)
    servers = (*ours, infinity.OPTIMUM)
    server_points = [
        LoadPoint(query, schedule.closed_loop(1), 1, peers=servers),
        LoadPoint(query, schedule.closed_loop(8), 8, peers=servers),
        LoadPoint(query, schedule.closed_loop(32), 32),
        LoadPoint(document, schedule.closed_loop(4), 4),
    ]
    hits = cached_workload(_CACHED_TEXTS)
    hit_points = [
        LoadPoint(hits, schedule.closed_loop(1), 1),
        LoadPoint(hits, schedule.closed_loop(32), 32),
        LoadPoint(query, schedule.closed_loop(32), UNCACHED, peers=shared_hits),
    ]
    bulk_points = [
        LoadPoint(query, schedule.open_loop(20), 0),
        LoadPoint(query, schedule.open_loop(20), 4, bulk=4),
        LoadPoint(document, schedule.closed_loop(4), BULK_ALONE),
    ]
    return [
        Experiment("server", (*servers, engine_in_process.PEER), server_points),
        Experiment("hits", (*ours, *shared_hits), hit_points),
        Experiment("bulk", ours, bulk_points),
    ]
