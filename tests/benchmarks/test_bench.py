"""The commands, on their own event loop, against a plain threaded server."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.peers.base import Peer
from benchmarks.target import DIALECTS
from benchmarks.workloads import WORKLOADS
from embedserve_client.command.main import main
from serve_app.command.ports import free_port
from tests.benchmarks.server import FakeServer

SHORT = ["--duration", "0.5", "--warmup", "0.1", "--connections", "2"]


@pytest.mark.parametrize("rate", [[], ["--rate", "50"]], ids=["closed loop", "open loop"])
def test_the_last_line_is_the_record(
    server: FakeServer, rate: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", server.url, *SHORT, *rate]) == 0
    shown = capsys.readouterr().out.splitlines()
    entry = json.loads(shown[-1])
    assert entry["failed"] == {}
    assert entry["answered"] > 5
    assert (entry["workload"], entry["url"]) == ("query", server.url)
    assert any("p99 ms" in line for line in shown)


@pytest.mark.parametrize(
    ("dialect", "path", "field"),
    [
        ("openai", "/v1/embeddings", "input"),
        ("infinity", "/embeddings", "input"),
        ("tei", "/embed", "inputs"),
    ],
)
def test_each_dialect_asks_in_its_own_words(
    server: FakeServer, dialect: str, path: str, field: str
) -> None:
    assert dialect in DIALECTS
    assert (
        main(["bench", "run", server.url, *SHORT, "--dialect", dialect, "--workload", "document"])
        == 0
    )
    assert {asked_path for asked_path, _ in server.asked} == {path}
    body = server.asked[0][1]
    assert isinstance(body, dict)
    assert len(body[field]) == 32


@pytest.mark.parametrize(
    "nonsense",
    [
        ["bench", "run", "--rate", "0"],
        ["bench", "run", "--duration", "nan"],
        ["bench", "run", "--connections", "0"],
        ["bench", "run", "localhost:8000"],
        ["compare", "http://a", "https://b"],
        ["compare", "http://a", "http://b", "--texts", "no such file"],
    ],
    ids=" ".join,
)
def test_nonsense_is_refused_with_words(
    nonsense: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(nonsense)
    assert "error: argument" in capsys.readouterr().err


def test_a_rate_that_changes_needs_a_rate(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", server.url, *SHORT, "--workload", "burst"]) == 1
    assert "say --rate" in capsys.readouterr().err
    assert main(["bench", "run", server.url, *SHORT, "--workload", "burst", "--rate", "60"]) == 0


def test_what_the_server_costs_is_told(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", server.url, *SHORT, "--pid", str(os.getpid())]) == 0
    entry = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert entry["server_cpu"] > 0
    assert entry["rss_mib"] > 10


def test_no_cluster_is_said_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["bench", "run", "ray:embedserve", *SHORT]) == 1
    assert "nothing answers at ray:embedserve" in capsys.readouterr().err


def test_the_capacity_of_one_replica_is_found_on_one_that_is_started_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def stand_in(name: str, title: str, replicas: int, config: Path) -> Peer:
        asked.append(replicas)
        program = ["-m", "tests.benchmarks.server"]
        return Peer(name, title, lambda at: [at.python, *program, str(at.port), "20"])

    monkeypatch.setattr("benchmarks.capacity.embedserve", stand_in)
    plan = ["--duration", "1", "--warmup", "0.2", "--connections", "64", "--slo-p99-ms", "150"]
    assert main(["bench", "capacity", "--config", "serve_config.yaml", *plan]) == 0
    assert asked == [1]
    assert "One replica keeps p99 under 150 ms up to" in capsys.readouterr().out


def test_compare_says_that_a_server_refuses(
    server: FakeServer, other: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other.refuses = True
    assert main(["compare", server.url, other.url, *SHORT]) == 1
    assert "no vectors to compare" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}\n", '{"experiment": "server"}\n', "nonsense"])
def test_no_report_is_made_of_what_is_no_whole_run(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text(content)
    assert main(["bench", "report", str(records)]) == 1
    assert "doesn't hold the records" in capsys.readouterr().err


def test_nobody_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", f"http://127.0.0.1:{free_port()}", *SHORT]) == 1
    assert "nothing answers at" in capsys.readouterr().err


def test_the_command_offers_every_workload_and_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "run", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*WORKLOADS, *DIALECTS))


def test_capacity_is_what_the_server_can_do(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.takes_s = 0.02  # one after the other: 50 requests/s and no more
    plan = ["--duration", "1.5", "--warmup", "0.2", "--connections", "64"]
    asked = ["bench", "capacity", server.url, *plan, "--slo-p99-ms", "150", "--for-rate", "100"]
    assert main(asked) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    entry = json.loads(last)
    assert 5 < entry["capacity_per_s"] < 60
    assert shown[-1].endswith(f"max_replicas: {entry['times']}")


def test_compare_shows_both_and_their_vectors(
    server: FakeServer, other: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other.takes_s = 0.02
    dialects = ["--dialects", "openai", "tei"]
    assert main(["compare", server.url, other.url, *SHORT, "--rounds", "2", *dialects]) == 0
    entry = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert entry["cosine_min"] == pytest.approx(1)
    assert entry["neighbours_agreed"] == 1
    assert entry["rate_ratio"] > 1
    assert entry["p50_ratio"] < 1
    assert entry["failed"] == {"first": 0, "second": 0}
