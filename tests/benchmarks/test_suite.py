"""The suite on peers that answer at once."""

from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from benchmarks import suite as suite_module
from benchmarks.experiments import FULL, QUICK, Experiment, Pace, Point, experiments
from benchmarks.peers.base import Peer, PeerFailed
from benchmarks.peers.server import Server
from benchmarks.report.figures import Record
from benchmarks.suite import Suite
from benchmarks.workloads import WORKLOADS

QUERY = WORKLOADS["query"]


def server(name: str, *arguments: str) -> Peer:
    program = ["-m", "tests.benchmarks.server"]
    return Peer(name, name.title(), lambda at: [at.python, *program, str(at.port), *arguments])


LIBRARY = Peer("library", "Library", lambda at: [at.python, "-m", "tests.benchmarks.library"])
FAST, SLOW = server("fast"), server("slow", "30")


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "LIBRARIES", (LIBRARY,))


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test looks for a second whether this machine has time; the others know it."""
    if request.function is not test_peers_take_turns_and_each_run_is_one_record:
        monkeypatch.setattr(suite_module, "_busy_cores", lambda: 0.0)


def pace(rounds: int = 1) -> Pace:
    return Pace(rounds=rounds, seconds=0.3, warmup_s=0.1)


def run(tmp_path: Path, experiment: Experiment, rounds: int = 1) -> list[Record]:
    file = tmp_path / "records.jsonl"
    Suite(pace(rounds), [experiment], file).run()
    return [orjson.loads(row) for row in file.read_bytes().splitlines()]


def test_peers_take_turns_and_each_run_is_one_record(tmp_path: Path) -> None:
    points = [Point(QUERY, pace().closed(2), 2), Point(QUERY, pace().closed(4), 4)]
    records = run(tmp_path, Experiment("server", [FAST, SLOW], points), rounds=2)
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
    assert len({r["suite"] for r in records}) == 1
    assert records[0]["texts_per_s"] > records[1]["texts_per_s"]


def test_peers_of_one_point_are_asked_the_same_and_other_points_something_else(
    tmp_path: Path,
) -> None:
    points = [Point(QUERY, pace().closed(2), 2), Point(QUERY, pace().closed(2), 3)]
    records = run(tmp_path, Experiment("server", [FAST, SLOW], points), rounds=2)
    seeds = [r["seed"] for r in records]
    assert seeds[0::2] == seeds[1::2]
    assert len(set(seeds)) == 4


def test_who_serves_other_vectors_or_is_not_there_is_left_out(tmp_path: Path) -> None:
    absent = Peer("absent", "Absent", lambda at: [], missing=lambda: "no `absent` on the PATH")
    broken = Peer("broken", "Broken", lambda at: [at.python, "-c", "raise SystemExit('sorry')"])
    peers = [server("wrong", "0", "another model"), absent, broken, FAST]
    records = run(tmp_path, Experiment("server", peers, [Point(QUERY, pace().closed(1), 1)]))
    why = {r["peer"]: r["why"] for r in records if r["experiment"] == "left out"}
    assert set(why) == {"wrong", "absent", "broken"}
    assert "not the model's: cosine" in why["wrong"]
    assert why["absent"] == "no `absent` on the PATH"
    assert "sorry" in why["broken"]
    assert [r["peer"] for r in records if r["experiment"] == "server"] == ["fast"]


def test_who_is_left_out_does_not_run_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[bool] = []
    wrong = server("wrong", "0", "another model")
    started: list[Server] = []

    def start(peer: Peer) -> Server:
        started.append(Server(peer))
        return started[-1]

    def measured(*asked: object) -> str:
        running.extend(psutil.pid_exists(s.pid) for s in started if s.peer is wrong)
        return ""

    monkeypatch.setattr(suite_module, "Server", start)
    monkeypatch.setattr(suite_module, "figures_line", measured)
    run(tmp_path, Experiment("server", [wrong, FAST], [Point(QUERY, pace().closed(1), 1)]))
    assert running == [False]


def test_only_the_one_under_load_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    under_load = suite_module._under_load

    def watched(*asked: Any) -> dict[str, Any]:
        seen.append({r.peer.name: psutil.Process(r.pid).status() for r in started})
        return under_load(*asked)

    started: list[Server] = []

    def start(peer: Peer) -> Server:
        started.append(Server(peer))
        return started[-1]

    monkeypatch.setattr(suite_module, "Server", start)
    monkeypatch.setattr(suite_module, "_under_load", watched)
    run(tmp_path, Experiment("server", [FAST, SLOW], [Point(QUERY, pace().closed(1), 1)]))
    for status, runs, waits in zip(seen, ("fast", "slow"), ("slow", "fast"), strict=True):
        assert status[waits] == psutil.STATUS_STOPPED
        assert status[runs] != psutil.STATUS_STOPPED
    assert not any(psutil.pid_exists(server.pid) for server in started)


def test_a_peer_that_is_swamped_is_spared_higher_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_module, "_BORNE_P99_MS", 250.0)
    swamped = server("swamped", "300")  # no answer of it is sooner
    points = [Point(QUERY, pace().open(rate), rate) for rate in (40, 60, 80)]
    records = run(tmp_path, Experiment("latency", [FAST, swamped], points, climbs=True), rounds=2)
    asked = [(r["round"], r["x"]) for r in records if r["peer"] == "fast"]
    assert asked == [(turn, rate) for turn in (0, 1) for rate in (40, 60, 80)]
    assert [(r["round"], r["x"]) for r in records if r["peer"] == "swamped"] == [(0, 40), (1, 40)]


def test_queries_beside_bulk(tmp_path: Path) -> None:
    point = Point(QUERY, pace().open(30), 2, bulk=2)
    (record,) = run(tmp_path, Experiment("bulk", [FAST], [point]))
    assert record["bulk_texts_per_s"] > 0
    assert record["rate"] == 30


def test_a_library_is_measured_by_its_own_time(tmp_path: Path) -> None:
    point = Point(QUERY, pace().closed(1), 0)
    (record,) = run(tmp_path, Experiment("library", [LIBRARY], [point]))
    assert 0 < record["texts_per_s"] <= 256 / 0.01
    assert "p50_ms" not in record


def test_without_the_reference_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = Peer(
        "library", "Library", lambda at: [at.python, "-m", "tests.benchmarks.library", "dies"]
    )
    monkeypatch.setattr(suite_module, "LIBRARIES", (dies,))
    with pytest.raises(PeerFailed, match="no vector can be checked"):
        run(tmp_path, Experiment("server", [FAST], [Point(QUERY, pace().closed(1), 1)]))


@pytest.mark.parametrize("quick", [True, False])
def test_every_experiment_meets_enough_peers(quick: bool) -> None:
    planned = {e.name: e for e in experiments(QUICK if quick else FULL, quick=quick)}
    assert set(planned) == {
        *("floor", "library", "length", "server", "latency"),
        *("batch", "bulk", "repeat"),
        *(() if quick else ("replicas",)),
    }
    assert len(planned["server"].peers) >= 5
    assert all(len({p.x for p in e.points}) == len(e.points) for e in planned.values())
