"""What `embedserve bench` measures: which load on which peers, and how often."""

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
    sentence_transformers_alone,
    tei,
    vllm,
)
from .peers.base import Peer
from .workloads import WORKLOADS, Workload, repeating, sized

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
#: Without those that one of the same kind beats.
_STRONGER = tuple(
    p for p in SERVERS if p not in (embedserve.INLINE, ray_serve_docs.PEER, infinity.TORCH)
)
#: Libraries, asked over a pipe. The first is what all vectors are compared with.
LIBRARIES = (sentence_transformers_alone.PEER, engine_alone.PEER)

#: Rates of the latency picture, requests/s: preferred numbers (ISO 3, R5).
_RATES = (20, 50, 80, 125, 200, 315, 500, 800, 1250, 2000)
_FLOOR_RATE = 5000.0
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """One load; `x` is its place on the axis of a picture."""

    workload: Workload
    plan: Plan
    x: float
    bulk: int = 0  #: clients that ask for documents beside it, one request after the other


@dataclass(frozen=True, slots=True)
class Experiment:
    """Loads that are put on several peers in turn."""

    name: str
    peers: Sequence[Peer]
    points: Sequence[Point]
    #: Whether the points are rising rates, of which those past what a peer bears are left out.
    climbs: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how often."""

    rounds: int
    seconds: float
    warmup_s: float = 0.5

    def closed(self, connections: int) -> Plan:
        """Clients that ask one request after the other."""
        return Plan(self.seconds, self.warmup_s, None, connections, _TIMEOUT_S)

    def open(self, rate: float) -> Plan:
        """Requests that come when they come."""
        return Plan(self.seconds, self.warmup_s, rate, 256, _TIMEOUT_S)


FULL = Pace(rounds=5, seconds=3.0)
QUICK = Pace(rounds=1, seconds=2.0)


def experiments(pace: Pace, *, quick: bool) -> list[Experiment]:
    """All of them, in the order in which they run; a quick suite takes fewer points of each.

    It also leaves out the replicas, for which one more service has to start.
    """
    query, document = WORKLOADS["query"], WORKLOADS["document"]
    lengths = (8, 128) if quick else (8, 32, 128, 250)
    sizes = (1, 16) if quick else (1, 8, 64)
    shares = (0.0, 1.0) if quick else (0.0, 0.5, 0.9, 1.0)
    bulk = (0, 4) if quick else (0, 1, 4)
    rates = _RATES[1::3] if quick else _RATES
    planned = [
        Experiment(
            "floor",
            [floor.PEER],
            [
                Point(query, pace.open(_FLOOR_RATE), _FLOOR_RATE),
                Point(query, pace.closed(1), 0),
            ],
        ),
        Experiment(
            "library",
            LIBRARIES,
            [Point(w, pace.closed(1), i) for i, w in enumerate((query, document))],
        ),
        Experiment(
            "length", LIBRARIES, [Point(sized(32, n, n), pace.closed(1), n + 2) for n in lengths]
        ),
        Experiment(
            "server",
            SERVERS,
            [
                Point(query, pace.closed(1), 1),
                Point(query, pace.closed(32), 32),
                Point(document, pace.closed(4), 4),
            ],
        ),
        Experiment("latency", SERVERS, [Point(query, pace.open(r), r) for r in rates], climbs=True),
        Experiment(
            "repeat",
            [embedserve.PEER],
            [Point(repeating(s), pace.closed(32), s) for s in shares],
        ),
        Experiment("batch", _STRONGER, [Point(sized(n, 5, 60), pace.closed(4), n) for n in sizes]),
        Experiment("bulk", _STRONGER, [Point(query, pace.open(20), n, bulk=n) for n in bulk]),
    ]
    if not quick:
        planned.append(
            Experiment(
                "replicas",
                [embedserve.ONE_CORE, embedserve.EACH_CORE],
                [Point(query, pace.closed(32), 32), Point(document, pace.closed(4), 4)],
            )
        )
    return planned
