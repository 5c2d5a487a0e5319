"""Runs experiments on peers in alternated rounds: what `embedserve bench` does.

The peers of an experiment are all up, and all but the one under load are stopped, since what is
idle takes time too. A round asks each of them the same texts, one right after the other, so that a
machine whose speed drifts is fair to all. A peer ends with the last experiment that it is in.
"""

import asyncio
import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .compare import cosines
from .display import Display, figures_line
from .experiments import (
    FULL,
    LIBRARIES,
    QUICK,
    Experiment,
    Pace,
    Point,
    experiments,
)
from .load import Outcome, Plan, run
from .loop import run_async
from .peers import floor
from .peers.base import Peer, PeerFailed
from .peers.in_process import Worker
from .peers.server import Server
from .record import RESULTS, append, record
from .report.publish import HOME, publish
from .target import Target
from .tokens import count_tokens
from .usage import Usage, pause, resume
from .workloads import WORKLOADS
from serve_app.types import Float32

#: Below it, what a peer serves is another model, and its speed says nothing.
_LEAST_COSINE = 0.99
_INSTALL_S, _START_S = 70.0, 15.0
_SETTLE_S = 0.3  # after a pause, all that a server does by the clock is due at once
_CALL_TEXTS, _CALL_LETTERS = 256, 80_000
#: Past it a server is swamped, and higher rates would only tell how far.
_BORNE_P99_MS = 1000.0

_QUICK = HOME / "quick"
_UNFINISHED = RESULTS / "unfinished.jsonl"  # no report is made from it
_BUSY_CORES = 0.2

Running = Server | Worker


def measure_all(*, quick: bool, rounds: int | None) -> int:
    """Runs the suite and publishes its report.

    A quick one goes into a folder of its own: it is for a look, and replaces no figures.

    Returns:
        The command's exit status.
    """
    pace = QUICK if quick else FULL
    pace = dataclasses.replace(pace, rounds=rounds or pace.rounds)
    if quick:
        shutil.rmtree(_QUICK, ignore_errors=True)
    file = _QUICK / "records.jsonl" if quick else _UNFINISHED
    file.unlink(missing_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # however it is ended, what it started ends too
        signal.signal(number, signal.default_int_handler)
    try:
        Suite(pace, experiments(pace, quick=quick), file).run()
    except (PeerFailed, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        print(f"embedserve: {why}; what was measured is in {file}", file=sys.stderr)
        return 1
    if not quick:
        file = file.rename(RESULTS / f"suite-{datetime.now(UTC):%Y-%m-%dT%H%M}.jsonl")
    page = publish(file, _QUICK, None) if quick else publish(file)
    print(f"{page}, from the records in {file}")
    return 0


class Suite:
    """One run of all experiments."""

    def __init__(self, pace: Pace, experiments: Sequence[Experiment], file: Path) -> None:
        """A run that appends its records to `file` as they come."""
        self._pace = pace
        self._experiments = experiments
        self._file = file
        self._id = datetime.now(UTC).isoformat(timespec="seconds")
        self._seed = int(datetime.now(UTC).timestamp()) * 1000
        self._running: dict[str, Running] = {}
        self._met = set[str]()
        self._cosines: dict[str, float] = {}
        self._expected: Float32
        #: The rates that each peer didn't bear, by experiment.
        self._too_much: dict[tuple[str, str], float] = defaultdict(lambda: float("inf"))
        asked = (peer for experiment in experiments for peer in experiment.peers)
        self._peers = list({peer.name: peer for peer in (LIBRARIES[0], *asked)}.values())

    def run(self) -> None:
        """Starts each peer when it is needed, runs every round, and stops what it started.

        Raises:
            PeerFailed: the one that all vectors are compared with doesn't run.
        """
        with ExitStack() as stack, Display(self._seconds()) as display:
            display.doing("looking whether this machine has time")
            if (busy := _busy_cores()) > _BUSY_CORES:
                display.say(f"Something else takes {busy:.1f} cores: all figures will be too low.")
            self._start(LIBRARIES[0], stack, display)
            if LIBRARIES[0].name not in self._running:
                raise PeerFailed(f"Without {LIBRARIES[0].title} no vector can be checked.")
            for i, experiment in enumerate(self._experiments):
                for peer in experiment.peers:
                    if peer.name not in self._met:
                        self._start(peer, stack, display)
                for turn in range(self._pace.rounds):
                    self._round(experiment, turn, display)
                later = {p.name for e in self._experiments[i + 1 :] for p in e.peers}
                for name in self._running.keys() - later:
                    display.doing(f"stopping {self._running[name].peer.title}")
                    self._running.pop(name).stop()

    def _seconds(self) -> float:
        """How long it should take."""
        here = [p for p in self._peers if p.missing() is None]
        new = {p.environment for p in here if p.environment and not p.environment.ready}
        names = {p.name for p in here}
        loads = sum(
            _planned_s(e, point) * sum(p.name in names for p in e.peers)
            for e in self._experiments
            for point in e.points
        )
        return len(new) * _INSTALL_S + len(here) * _START_S + self._pace.rounds * loads

    def _start(self, peer: Peer, stack: ExitStack, display: Display) -> None:
        """Starts a peer and checks its vectors; one that can't be measured is ended."""
        running: Running | None = None
        self._met.add(peer.name)
        try:
            if (missing := peer.missing()) is not None:
                raise PeerFailed(missing)
            if peer.environment is not None and not peer.environment.ready:
                display.doing(f"installing {peer.title} into {peer.environment.folder}")
                peer.environment.install()
                display.done(_INSTALL_S, f"installed {peer.title}")
            display.doing(f"starting {peer.title}")
            running = Worker(peer) if peer in LIBRARIES else Server(peer)
            stack.enter_context(running)
            running.wait_until_ready()
            if peer is not floor.PEER:
                self._check(running)
        except (PeerFailed, OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", None) or str(error)
            display.done(0, f"left out: {peer.title}: {why}")
            if running is not None:
                running.stop()  # or it would take from those that are measured
            self._keep({"experiment": "left out", "peer": peer.name, "why": why.strip()}, {})
        else:
            pause(running.pid)
            self._running[peer.name] = running
            display.done(_START_S, f"started {peer.title}")

    def _check(self, running: Running) -> None:
        """Compares vectors with those of sentence-transformers, the first peer to start.

        Raises:
            PeerFailed: they are others.
        """
        vectors = self._sample(running)
        if running.peer is LIBRARIES[0]:
            self._expected = vectors
        expected = self._expected
        if vectors.shape != expected.shape:
            raise PeerFailed(f"its vectors are of shape {vectors.shape}, not {expected.shape}")
        cosine = float(cosines(vectors, expected).min())
        self._cosines[running.peer.name] = round(cosine, 7)
        if not cosine > _LEAST_COSINE:
            raise PeerFailed(f"its vectors are not the model's: cosine {cosine:.4f} at the least")

    def _sample(self, running: Running) -> Float32:
        requests = islice(WORKLOADS["document"].requests(0), 4)
        return np.concatenate([running.vectors(texts) for texts in requests])

    def _round(self, experiment: Experiment, turn: int, display: Display) -> None:
        peers = [p for p in experiment.peers if p.name in self._running]
        peers = peers[turn % len(peers) :] + peers[: turn % len(peers)] if peers else []
        for point in experiment.points:
            self._seed += 1
            for peer in peers:
                if point.x > self._too_much[experiment.name, peer.name]:
                    display.done(_planned_s(experiment, point), "")
                else:
                    self._trial(experiment, turn, point, peer, display)

    def _trial(
        self, experiment: Experiment, turn: int, point: Point, peer: Peer, display: Display
    ) -> None:
        running = self._running[peer.name]
        plan = dataclasses.replace(point.plan, seed=self._seed)
        load = f"{plan.rate:g} requests/s" if plan.rate else f"{plan.connections} clients"
        what = f"{experiment.name}: {peer.title}, {point.workload.description}, {load}"
        display.doing(f"{what}, round {turn + 1} of {self._pace.rounds}")
        resume(running.pid)
        time.sleep(_SETTLE_S)
        usage = Usage(running.pid)
        if isinstance(running, Worker):
            figures = _encode(running, point, plan)
        else:
            figures = _under_load(running.target, point, plan, display.pulse)
        figures |= usage.figures()
        pause(running.pid)
        if experiment.climbs and (figures["failed"] or figures.get("p99_ms", 0) > _BORNE_P99_MS):
            key = (experiment.name, peer.name)
            self._too_much[key] = min(self._too_much[key], point.x)
        asked = {
            "experiment": experiment.name,
            "peer": peer.name,
            "title": peer.title,
            "round": turn,
            "x": point.x,
            "bulk": point.bulk,
            "cosine_min": self._cosines.get(peer.name),
            "workload": point.workload.name,
            **plan.describe(),
        }
        self._keep(asked, figures)
        display.done(_planned_s(experiment, point), f"{what}: {figures_line(figures)}")

    def _keep(self, asked: dict[str, Any], figures: dict[str, Any]) -> None:
        suite = {"suite": self._id, "rounds": self._pace.rounds}
        append(self._file, record({**suite, **asked}, figures))


def _planned_s(experiment: Experiment, point: Point) -> float:
    """How long a run should take; of rising rates most peers bear the lower half only."""
    return point.plan.seconds * (0.5 if experiment.climbs else 1)


def _busy_cores() -> float:
    usage = Usage(None)
    time.sleep(1)
    return float(usage.figures()["machine_cpu"])


def _under_load(
    target: Target, point: Point, plan: Plan, pulse: Callable[..., None]
) -> dict[str, Any]:
    async def both() -> tuple[Outcome, Outcome | None]:
        load = run(target, point.workload.requests(plan.seed), plan, pulse)
        if not point.bulk:
            return await load, None
        documents = WORKLOADS["document"].requests(plan.seed)
        bulk = dataclasses.replace(plan, rate=None, connections=point.bulk)
        return await asyncio.gather(load, run(target, documents, bulk))

    outcome, beside = run_async(both())
    figures: dict[str, Any] = outcome.summary()
    if beside is not None:
        figures["bulk_texts_per_s"] = beside.summary()["texts_per_s"]
    return figures


def _call(stream: Iterator[str]) -> list[str]:
    """The texts of one call: enough for sorting by length to pay, not more than seconds of work."""
    texts, letters = list[str](), 0
    while len(texts) < _CALL_TEXTS and letters < _CALL_LETTERS:
        texts.append(next(stream))
        letters += len(texts[-1])
    return texts


def _encode(worker: Worker, point: Point, plan: Plan) -> dict[str, Any]:
    """Texts a second of a library; its own time only."""
    stream = chain.from_iterable(point.workload.requests(plan.seed))
    seconds, calls = 0.0, list[list[str]]()
    while seconds < plan.duration_s:
        calls.append(_call(stream))
        seconds += worker.encode(calls[-1])
    return {
        "requests_per_s": round(len(calls) / seconds, 2),
        "texts_per_s": round(sum(map(len, calls)) / seconds, 2),
        "tokens_per_s": round(sum(count_tokens(calls)) / seconds),
        "answered": len(calls),
        "failed": {},
    }
