"""The suite with fake peers."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from benchmarks.experiments import FULL, QUICK, Experiment, LoadPoint, Schedule, experiments
from benchmarks.peers.base import Peer, PeerError, PeerProcess
from benchmarks.peers.server import PROBE_TEXT, ServerProcess
from benchmarks.record import Record
from benchmarks.suite import Suite, busy_cores
from benchmarks.target import HttpTarget
from benchmarks.workloads import WORKLOADS, Workload, cached_workload
from tests.benchmarks.fake_server import FakeServer

QUERY = WORKLOADS["query"]


def server_peer(name: str, *arguments: str) -> Peer:
    program = ["-m", "tests.benchmarks.fake_server"]
    return Peer(name, name.title(), lambda p: [p.python, *program, str(p.port), *arguments])


def library_peer(*arguments: str) -> Peer:
    program = ["-m", "tests.benchmarks.fake_library"]
    return Peer("library", "Library", lambda p: [p.python, *program, *arguments])


LIBRARY = library_peer()
FAST, SLOW = server_peer("fast"), server_peer("slow", "30")


def short_schedule(rounds: int = 1) -> Schedule:
    return Schedule(rounds=rounds, seconds=0.3, warmup_s=0.1)


def closed_loop_point(connections: int, x: float, workload: Workload = QUERY) -> LoadPoint:
    return LoadPoint(workload, short_schedule().closed_loop(connections), x)


def run_suite(
    tmp_path: Path, experiment: Experiment, rounds: int = 1, **options: Any
) -> list[Record]:
    file = tmp_path / "records.jsonl"
    options = {"libraries": [LIBRARY], "busy_cores": lambda: 0.0, **options}
    Suite(short_schedule(rounds), [experiment], file, **options).run()
    return [orjson.loads(row) for row in file.read_bytes().splitlines()]


def observed_workload(observe: Callable[[], object]) -> Workload:
    """A workload that calls `observe` when its load starts."""

    def stream(rng: random.Random) -> Iterator[list[str]]:
        observe()
        yield from QUERY.stream(rng)

    return Workload("observed", "queries", stream)


def test_peers_alternate_and_each_run_is_one_record(tmp_path: Path) -> None:
    experiment = Experiment(
        "server", [FAST, SLOW], [closed_loop_point(2, 2), closed_loop_point(4, 4)]
    )
    records = run_suite(tmp_path, experiment, rounds=2, busy_cores=busy_cores)
    assert [(r["round"], r["x"], r["peer"]) for r in records] == [
        *((0, 2, "fast"), (0, 2, "slow"), (0, 4, "fast"), (0, 4, "slow")),
        *((1, 2, "slow"), (1, 2, "fast"), (1, 4, "slow"), (1, 4, "fast")),
    ]
    for record in records:
        assert record["failed"] == {}
        assert record["cosine_min"] == pytest.approx(1)
        assert record["server_cpu"] >= 0
        assert record["pss_mib"] > 1
        assert {"suite", "commit", "command", "machine", "tokens_per_s"} <= set(record)
        assert record["start_s"] > 0
        assert record["processes"] == 1
    assert len({r["suite"] for r in records}) == 1
    assert records[0]["texts_per_s"] > records[1]["texts_per_s"]


def test_peers_of_a_point_get_the_same_texts_and_other_points_get_others(tmp_path: Path) -> None:
    experiment = Experiment(
        "server", [FAST, SLOW], [closed_loop_point(2, 2), closed_loop_point(2, 3)]
    )
    seeds = [r["seed"] for r in run_suite(tmp_path, experiment, rounds=2)]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 4


def test_a_peer_that_cannot_be_measured_is_recorded_with_the_reason(tmp_path: Path) -> None:
    absent = Peer("absent", "Absent", lambda p: [], unavailable_reason=lambda: "no `absent`")
    broken = Peer("broken", "Broken", lambda p: [p.python, "-c", "raise SystemExit('sorry')"])
    wrong = server_peer("wrong", "0", "another model")
    experiment = Experiment("server", [wrong, absent, broken, FAST], [closed_loop_point(1, 1)])
    records = run_suite(tmp_path, experiment)
    reasons = {r["peer"]: r["why"] for r in records if r["experiment"] == "left out"}
    assert set(reasons) == {"wrong", "absent", "broken"}
    assert "not the model's: the minimum cosine is" in reasons["wrong"]
    assert reasons["absent"] == "no `absent`"
    assert "sorry" in reasons["broken"]
    assert [r["peer"] for r in records if r["experiment"] == "server"] == ["fast"]


def test_a_peer_that_cannot_be_measured_is_stopped_before_the_others_run(tmp_path: Path) -> None:
    wrong = server_peer("wrong", "0", "another model")
    servers: list[ServerProcess] = []
    running: list[bool] = []

    def start_server(peer: Peer) -> ServerProcess:
        servers.append(ServerProcess(peer))
        return servers[-1]

    def observe() -> None:
        running.extend(psutil.pid_exists(s.pid) for s in servers if s.peer is wrong)

    point = closed_loop_point(1, 1, observed_workload(observe))
    run_suite(tmp_path, Experiment("server", [wrong, FAST], [point]), start_server=start_server)
    assert running == [False]


def test_all_servers_but_the_one_under_load_are_suspended(tmp_path: Path) -> None:
    servers: list[ServerProcess] = []
    statuses: list[dict[str, str]] = []

    def start_server(peer: Peer) -> ServerProcess:
        servers.append(ServerProcess(peer))
        return servers[-1]

    def observe() -> None:
        statuses.append({s.peer.name: psutil.Process(s.pid).status() for s in servers})

    point = closed_loop_point(1, 1, observed_workload(observe))
    run_suite(tmp_path, Experiment("server", [FAST, SLOW], [point]), start_server=start_server)
    for status, loaded, idle in zip(statuses, ("fast", "slow"), ("slow", "fast"), strict=True):
        assert status[idle] == psutil.STATUS_STOPPED
        assert status[loaded] != psutil.STATUS_STOPPED
    assert not any(psutil.pid_exists(server.pid) for server in servers)


def test_a_saturated_peer_skips_higher_rates(tmp_path: Path) -> None:
    slow = server_peer("saturated", "300")  # slower than the limit at every rate
    points = [LoadPoint(QUERY, short_schedule().open_loop(rate), rate) for rate in (40, 60, 80)]
    experiment = Experiment("latency", [FAST, slow], points, increasing_rate=True)
    records = run_suite(tmp_path, experiment, rounds=2, saturation_p99_ms=250.0)
    measured = [(r["peer"], r["round"], r["x"]) for r in records]
    assert [m[1:] for m in measured if m[0] == "fast"] == [
        (turn, rate) for turn in (0, 1) for rate in (40, 60, 80)
    ]
    assert [m[1:] for m in measured if m[0] == "saturated"] == [(0, 40), (1, 40)]


def test_queries_during_bulk_load(tmp_path: Path) -> None:
    point = LoadPoint(QUERY, short_schedule().open_loop(30), 2, bulk=2)
    (record,) = run_suite(tmp_path, Experiment("bulk", [FAST], [point]))
    assert record["bulk_texts_per_s"] > 0
    assert record["rate"] == 30


def test_a_point_with_peers_of_its_own_measures_only_these(tmp_path: Path) -> None:
    points = [closed_loop_point(1, 1), closed_loop_point(2, 2)]
    points[0] = dataclasses.replace(points[0], peers=[SLOW])
    records = run_suite(tmp_path, Experiment("server", [FAST, SLOW], points))
    assert [(r["x"], r["peer"]) for r in records] == [(1, "slow"), (2, "fast"), (2, "slow")]


def test_cached_texts_are_embedded_before_the_load(
    tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_server(peer: Peer) -> ServerProcess:
        process = ServerProcess(peer)
        monkeypatch.setattr(process, "target", HttpTarget(server.url))
        return process

    workload = cached_workload(8)
    point = closed_loop_point(1, 1, workload)
    run_suite(tmp_path, Experiment("hits", [FAST], [point]), start_server=start_server)
    bodies = [body["input"] for _, body in server.requests]
    first_load = next(
        i for i, texts in enumerate(bodies) if len(texts) == 1 and texts[0] != PROBE_TEXT
    )
    assert bodies[first_load - 1] == list(workload.cached_texts)
    assert bodies[first_load : first_load + 16] == [[text] for text in workload.cached_texts] * 2


def test_the_precision_is_that_of_the_engine(tmp_path: Path) -> None:
    precisions: list[str] = []

    def program(process: PeerProcess) -> list[str]:
        precisions.append(process.precision or "")
        return FAST.command(process)

    experiment = Experiment("server", [Peer("fast", "Fast", program)], [closed_loop_point(1, 1)])
    (record,) = run_suite(tmp_path, experiment, precision="fp32")
    assert precisions == ["fp32"]
    assert record["precision"] == "fp32"
    (record,) = run_suite(tmp_path / "default", experiment)
    assert record["precision"] in ("fp32", "bf16")


def test_a_library_is_measured_by_the_time_inside_it(tmp_path: Path) -> None:
    (record,) = run_suite(tmp_path, Experiment("library", [LIBRARY], [closed_loop_point(1, 0)]))
    assert 0 < record["texts_per_s"] <= 256 / 0.01
    assert "p50_ms" not in record


def test_without_the_reference_library_the_suite_fails(tmp_path: Path) -> None:
    experiment = Experiment("server", [FAST], [closed_loop_point(1, 1)])
    with pytest.raises(PeerError, match="no vectors can be checked"):
        run_suite(tmp_path, experiment, libraries=[library_peer("fail")])


@pytest.mark.parametrize("quick", [True, False])
def test_the_planned_experiments(quick: bool) -> None:
    planned = {e.name: e for e in experiments(QUICK if quick else FULL, quick=quick)}
    assert set(planned) == {
        *("floor", "library", "length", "server", "latency"),
        *("batch", "bulk", "repeat"),
        *(() if quick else ("replicas",)),
    }
    assert len(planned["server"].peers) >= 5
    assert all(len({p.x for p in e.points}) == len(e.points) for e in planned.values())
