"""Runs the experiments in alternating rounds: `embedserve bench`.

All peers of an experiment run at once, suspended except for the one under load, since idle servers
use CPU too. In a round every peer gets the same texts, one peer right after the other, so that
drift of the machine affects all alike. A peer stops after its last experiment.
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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.types import Float32

from .compare import cosines
from .display import Display, format_metrics
from .experiments import FULL, LIBRARIES, QUICK, Experiment, LoadPoint, Schedule, experiments
from .load import OnProgress, Outcome, Plan, run_load
from .loop import run_async
from .paths import REPORT_FOLDER, RESULTS
from .peers import floor
from .peers.base import Peer, PeerError
from .peers.in_process import LibraryProcess
from .peers.server import PROBE_TEXT, ServerProcess
from .record import append_record, default_precision, make_record
from .report.publish import publish
from .report.results import UNAVAILABLE
from .target import Target
from .tokens import count_tokens
from .usage import Usage, pause, resume
from .workloads import WORKLOADS

_MIN_COSINE = 0.99  # a peer with a lower one serves another model, whose speed is irrelevant
_INSTALL_S, _START_S = 70.0, 15.0
_SETTLE_S = 0.3  # after a suspension all expired timers of a server fire at once
_BATCH_TEXTS, _BATCH_CHARS = 256, 80_000

_QUICK_FOLDER = REPORT_FOLDER / "quick"
_UNFINISHED = RESULTS / "unfinished.jsonl"  # never a source of the report
_BUSY_CORES = 0.2

RunningPeer = ServerProcess | LibraryProcess


def run_suite(*, quick: bool, rounds: int | None, precision: str | None) -> int:
    """Runs the suite and publishes its report.

    The results of a quick suite go into a separate folder and replace no published ones.

    Args:
        quick: one short round.
        rounds: how often each point is measured; None: the default.
        precision: of EmbedServe's engine; None: its default for this CPU.

    Returns:
        The command's exit status.
    """
    schedule = QUICK if quick else FULL
    schedule = dataclasses.replace(schedule, rounds=rounds or schedule.rounds)
    if quick:
        shutil.rmtree(_QUICK_FOLDER, ignore_errors=True)
    file = _QUICK_FOLDER / "records.jsonl" if quick else _UNFINISHED
    if not run_experiments(schedule, experiments(schedule, quick=quick), file, precision):
        return 1
    if quick:
        page = publish(file, _QUICK_FOLDER, None)
    else:
        file = file.rename(RESULTS / f"suite-{datetime.now(UTC):%Y-%m-%dT%H%M}.jsonl")
        page = publish(file)
    print(f"{page}, from the records in {file}")
    return 0


def run_experiments(
    schedule: Schedule, experiments: Sequence[Experiment], file: Path, precision: str | None
) -> bool:
    """Writes the records of experiments to a file; if they can't be completed, prints why.

    Returns:
        Whether the records are complete.
    """
    file.unlink(missing_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # both stop the peers
        signal.signal(number, signal.default_int_handler)
    try:
        Suite(schedule, experiments, file, precision=precision).run()
    except (PeerError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        print(f"embedserve: {reason}; the records so far are in {file}", file=sys.stderr)
        return False
    return True


def busy_cores() -> float:
    """Returns how many cores the machine uses now, averaged over a second."""
    usage = Usage(None)
    time.sleep(1)
    return float(usage.metrics()["machine_cpu"])


class Suite:
    """One run of a list of experiments."""

    def __init__(
        self,
        schedule: Schedule,
        experiments: Sequence[Experiment],
        file: Path,
        *,
        precision: str | None = None,
        libraries: Sequence[Peer] = LIBRARIES,
        start_server: Callable[[Peer], ServerProcess] | None = None,
        busy_cores: Callable[[], float] = busy_cores,
        saturation_p99_ms: float = 1000.0,
    ) -> None:
        """Creates a run.

        Args:
            schedule: the number of rounds.
            experiments: run in this order.
            file: records are appended to it.
            precision: of EmbedServe's engine; None: its default for this CPU.
            libraries: the peers that run in process; the vectors of all peers are compared with
                those of the first.
            start_server: starts any other peer; None: `ServerProcess`.
            busy_cores: returns the cores that other processes use, before the first experiment.
            saturation_p99_ms: a rate with a higher p99 saturates a peer, which then skips higher
                rates.
        """
        self._schedule = schedule
        self._experiments = experiments
        self._file = file
        self._libraries = libraries
        self._start_library = partial(LibraryProcess, precision=precision)
        self._start_server = start_server or partial(ServerProcess, precision=precision)
        self._precision = precision or default_precision()
        self._busy_cores = busy_cores
        self._saturation_p99_ms = saturation_p99_ms
        self._id = datetime.now(UTC).isoformat(timespec="seconds")
        self._seed = int(datetime.now(UTC).timestamp()) * 1000
        self._running: dict[str, RunningPeer] = {}
        self._attempted = set[str]()
        self._cosines: dict[str, float] = {}
        self._start_s: dict[str, float] = {}
        self._reference_vectors: Float32
        #: The lowest saturating rate by experiment and peer.
        self._saturating_rates = defaultdict[tuple[str, str], float](lambda: float("inf"))
        peers = (peer for experiment in experiments for peer in experiment.peers)
        self._peers = list({peer.name: peer for peer in (libraries[0], *peers)}.values())

    def run(self) -> None:
        """Starts each peer before its first experiment, runs all rounds and stops the peers.

        Raises:
            PeerError: the library that provides the reference vectors doesn't run.
        """
        with ExitStack() as stack, Display(self._planned_s()) as display:
            display.start_step("checking that the machine is idle")
            if (cores := self._busy_cores()) > _BUSY_CORES:
                display.print(f"Other processes use {cores:.1f} cores: results will be too low.")
            self._start(self._libraries[0], stack, display)
            if self._libraries[0].name not in self._running:
                title = self._libraries[0].title
                raise PeerError(f"{title} doesn't run, so no vectors can be checked")
            for i, experiment in enumerate(self._experiments):
                for peer in experiment.peers:
                    if peer.name not in self._attempted:
                        self._start(peer, stack, display)
                for turn in range(self._schedule.rounds):
                    self._run_round(experiment, turn, display)
                later = {p.name for e in self._experiments[i + 1 :] for p in e.peers}
                for name in self._running.keys() - later:
                    display.start_step(f"stopping {self._running[name].peer.title}")
                    self._running.pop(name).stop()

    def _planned_s(self) -> float:
        available = [p for p in self._peers if p.unavailable_reason() is None]
        environments = {p.environment for p in available if p.environment}
        missing = sum(not environment.is_installed for environment in environments)
        names = {p.name for p in available}
        loads_s = sum(
            _point_s(e, point) * sum(p.name in names for p in e.peers_at(point))
            for e in self._experiments
            for point in e.points
        )
        rounds_s = self._schedule.rounds * loads_s
        return missing * _INSTALL_S + len(available) * _START_S + rounds_s

    def _start(self, peer: Peer, stack: ExitStack, display: Display) -> None:
        """Starts a peer and checks its vectors; records and stops one that can't be measured."""
        running: RunningPeer | None = None
        self._attempted.add(peer.name)
        try:
            if (reason := peer.unavailable_reason()) is not None:
                raise PeerError(reason)
            if peer.environment is not None and not peer.environment.is_installed:
                display.start_step(f"installing {peer.title} into {peer.environment.folder}")
                peer.environment.install()
                display.finish_step(_INSTALL_S, f"installed {peer.title}")
            display.start_step(f"starting {peer.title}")
            start = self._start_library if peer in self._libraries else self._start_server
            started_at = time.monotonic()
            running = start(peer)
            stack.enter_context(running)
            running.wait_until_ready()
            self._start_s[peer.name] = round(time.monotonic() - started_at, 2)
            if peer is not floor.PEER:
                self._check_vectors(running)
        except (PeerError, OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            display.finish_step(0, f"not measured: {peer.title}: {reason}")
            if running is not None:
                running.stop()  # or it would use CPU during the measurements
            parameters = {"experiment": UNAVAILABLE, "peer": peer.name, "why": reason.strip()}
            self._save(parameters, {})
        else:
            pause(running.pid)
            self._running[peer.name] = running
            display.finish_step(_START_S, f"started {peer.title}")

    def _check_vectors(self, running: RunningPeer) -> None:
        """Compares the vectors of sample texts with the reference, the first peer's.

        Raises:
            PeerError: the vectors differ.
        """
        requests = islice(WORKLOADS["document"].requests(0), 4)
        vectors = np.concatenate([running.embed(texts) for texts in requests])
        if running.peer is self._libraries[0]:
            self._reference_vectors = vectors
        reference = self._reference_vectors
        if vectors.shape != reference.shape:
            raise PeerError(f"its vectors have shape {vectors.shape}, not {reference.shape}")
        cosine = float(cosines(vectors, reference).min())
        self._cosines[running.peer.name] = round(cosine, 7)
        if not cosine > _MIN_COSINE:
            raise PeerError(f"its vectors are not the model's: the minimum cosine is {cosine:.4f}")

    def _run_round(self, experiment: Experiment, turn: int, display: Display) -> None:
        peers = [p for p in experiment.peers if p.name in self._running]
        peers = peers[turn % len(peers) :] + peers[: turn % len(peers)] if peers else []
        for point in experiment.points:
            self._seed += 1
            for peer in [p for p in peers if p in experiment.peers_at(point)]:
                if point.x > self._saturating_rates[experiment.name, peer.name]:
                    display.finish_step(_point_s(experiment, point), "")
                else:
                    self._measure(experiment, turn, point, peer, display)

    def _measure(
        self, experiment: Experiment, turn: int, point: LoadPoint, peer: Peer, display: Display
    ) -> None:
        running = self._running[peer.name]
        plan = dataclasses.replace(point.plan, seed=self._seed)
        load = f"{plan.rate:g} requests/s" if plan.rate else f"{plan.connections} clients"
        step = f"{experiment.name}: {peer.title}, {point.workload.description}, {load}"
        display.start_step(f"{step}, round {turn + 1} of {self._schedule.rounds}")
        resume(running.pid)
        time.sleep(_SETTLE_S)
        if isinstance(running, ServerProcess):
            # Ray restarts its proxy after a suspension of minutes.
            running.wait_until_ready(texts=point.workload.cached_texts or [PROBE_TEXT])
        usage = Usage(running.pid)
        if isinstance(running, LibraryProcess):
            metrics = _measure_library(running, point, plan)
        else:
            metrics = _measure_server(running.target, point, plan, display.update)
        metrics |= usage.metrics()
        pause(running.pid)
        if experiment.increasing_rate and self._is_saturated(metrics):
            key = (experiment.name, peer.name)
            self._saturating_rates[key] = min(self._saturating_rates[key], point.x)
        parameters = {
            "experiment": experiment.name,
            "peer": peer.name,
            "title": peer.title,
            "round": turn,
            "x": point.x,
            "bulk": point.bulk,
            "cosine_min": self._cosines.get(peer.name),
            "start_s": self._start_s[peer.name],
            "workload": point.workload.name,
            **plan.describe(),
        }
        self._save(parameters, metrics)
        display.finish_step(_point_s(experiment, point), f"{step}: {format_metrics(metrics)}")

    def _is_saturated(self, metrics: dict[str, Any]) -> bool:
        return bool(metrics["failed"]) or metrics.get("p99_ms", 0) > self._saturation_p99_ms

    def _save(self, parameters: dict[str, Any], metrics: dict[str, Any]) -> None:
        suite = {
            "suite": self._id,
            "rounds": self._schedule.rounds,
            "precision": self._precision,
        }
        append_record(self._file, make_record({**suite, **parameters}, metrics))


def _point_s(experiment: Experiment, point: LoadPoint) -> float:
    """Estimates the duration of a point; most peers skip the upper half of increasing rates."""
    return point.plan.total_s * (0.5 if experiment.increasing_rate else 1)


def _measure_server(
    target: Target, point: LoadPoint, plan: Plan, on_progress: OnProgress
) -> dict[str, Any]:
    async def run() -> tuple[Outcome, Outcome | None]:
        load = run_load(target, point.workload.requests(plan.seed), plan, on_progress)
        if not point.bulk:
            return await load, None
        documents = WORKLOADS["document"].requests(plan.seed)
        bulk_plan = dataclasses.replace(plan, rate=None, connections=point.bulk)
        return await asyncio.gather(load, run_load(target, documents, bulk_plan))

    outcome, bulk_outcome = run_async(run())
    metrics: dict[str, Any] = outcome.summary()
    if bulk_outcome is not None:
        metrics["bulk_texts_per_s"] = bulk_outcome.summary()["texts_per_s"]
    return metrics


def _next_batch(texts: Iterator[str]) -> list[str]:
    """Returns enough texts for sorting by length to pay off, for at most seconds of work."""
    batch, chars = list[str](), 0
    while len(batch) < _BATCH_TEXTS and chars < _BATCH_CHARS:
        batch.append(next(texts))
        chars += len(batch[-1])
    return batch


def _measure_library(library: LibraryProcess, point: LoadPoint, plan: Plan) -> dict[str, Any]:
    """Returns the throughput of a library, by the time inside the library."""
    texts = chain.from_iterable(point.workload.requests(plan.seed))
    seconds, batches = 0.0, list[list[str]]()
    while seconds < plan.duration_s:
        batches.append(_next_batch(texts))
        seconds += library.time_embedding(batches[-1])
    return {
        "requests_per_s": round(len(batches) / seconds, 2),
        "texts_per_s": round(sum(map(len, batches)) / seconds, 2),
        "tokens_per_s": round(sum(count_tokens(batches)) / seconds),
        "answered": len(batches),
        "failed": {},
    }
