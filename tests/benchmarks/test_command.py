"""The commands, in-process, against a threaded server."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.load import Outcome
from benchmarks.target import DIALECTS
from benchmarks.workloads import WORKLOADS
from embedserve_client.command.main import main
from serve_app.command.ports import free_port
from tests.benchmarks.fake_server import FakeServer

SHORT = ["--duration", "0.5", "--warmup", "0.1", "--connections", "2"]


@pytest.mark.parametrize("rate", [[], ["--rate", "50"]], ids=["closed loop", "open loop"])
def test_the_last_line_is_the_record(
    server: FakeServer, rate: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", server.url, *SHORT, *rate]) == 0
    lines = capsys.readouterr().out.splitlines()
    record = json.loads(lines[-1])
    assert record["failed"] == {}
    assert record["answered"] > 5
    assert (record["workload"], record["url"]) == ("query", server.url)
    assert any("p99 ms" in line for line in lines)


@pytest.mark.parametrize(
    ("dialect", "path", "field"),
    [
        ("openai", "/v1/embeddings", "input"),
        ("infinity", "/embeddings", "input"),
        ("tei", "/embed", "inputs"),
    ],
)
def test_each_dialect_has_its_path_and_field(
    server: FakeServer, dialect: str, path: str, field: str
) -> None:
    assert dialect in DIALECTS
    options = [*SHORT, "--dialect", dialect, "--workload", "document"]
    assert main(["bench", "run", server.url, *options]) == 0
    assert {request_path for request_path, _ in server.requests} == {path}
    body = server.requests[0][1]
    assert isinstance(body, dict)
    assert len(body[field]) == 32


@pytest.mark.parametrize(
    ("key", "sent"), [("es-key\n", {"Bearer es-key"}), (None, {None})], ids=["key", "no key"]
)
def test_the_api_key_is_sent_and_not_shown(
    server: FakeServer,
    key: str | None,
    sent: set[str | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if key is not None:
        monkeypatch.setenv("EMBEDSERVE_API_KEY", key)
    assert main(["bench", "run", server.url, *SHORT]) == 0
    assert server.authorizations == sent
    captured = capsys.readouterr()
    assert "es-key" not in captured.out + captured.err


def test_a_key_that_no_header_holds_is_refused(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDSERVE_API_KEY", "es-key\r\nx-other: 1")
    assert main(["bench", "run", server.url, *SHORT]) == 1
    assert "EMBEDSERVE_API_KEY" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
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
def test_invalid_arguments_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: argument" in capsys.readouterr().err


def test_a_workload_with_a_varying_rate_needs_a_rate(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    burst = ["bench", "run", server.url, *SHORT, "--workload", "burst"]
    assert main(burst) == 1
    assert "set it with --rate" in capsys.readouterr().err
    assert main([*burst, "--rate", "60"]) == 0


def test_the_usage_of_the_server_is_recorded(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "run", server.url, *SHORT, "--pid", str(os.getpid())]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["server_cpu"] > 0
    assert record["rss_mib"] > 10


def test_without_a_cluster_the_command_fails_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    # Ray would find any cluster on this machine by its processes.
    monkeypatch.setattr("ray.init", init)
    assert main(["bench", "run", "ray:embedserve", *SHORT]) == 1
    assert "can't connect to ray:embedserve" in capsys.readouterr().err


def test_without_a_server_the_command_fails_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", f"http://127.0.0.1:{free_port()}", *SHORT]) == 1
    assert "can't connect to" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}\n", '{"experiment": "server"}\n', "no JSON"])
def test_an_incomplete_set_of_records_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text(content)
    assert main(["bench", "report", str(records)]) == 1
    assert "isn't a complete set of records" in capsys.readouterr().err


def test_the_help_lists_every_workload_and_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "run", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in (*WORKLOADS, *DIALECTS))


def test_the_capacity_is_the_rate_that_the_server_answers(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outcome, "generator_is_the_limit", lambda self: False)  # on a busy machine
    server.max_per_s = 50
    plan = ["--duration", "1", "--warmup", "0.2", "--connections", "64"]
    objective = ["--slo-p99-ms", "10000", "--for-rate", "100"]
    assert main(["bench", "capacity", server.url, *plan, *objective]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert 0 < record["capacity_per_s"] < 120
    assert lines[-1].endswith(f"max_replicas: {record['scale_factor']}")


def test_compare_measures_both_servers_and_their_vectors(
    server: FakeServer, other_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other_server.delay_s = 0.02
    options = [*SHORT, "--rounds", "2", "--dialects", "openai", "tei"]
    assert main(["compare", server.url, other_server.url, *options]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["cosine_min"] == pytest.approx(1)
    assert record["neighbor_overlap"] == 1
    assert record["rate_ratio"] > 1
    assert record["p50_ratio"] < 1
    assert record["failed"] == {"first": 0, "second": 0}


def test_compare_fails_if_a_server_returns_an_error(
    server: FakeServer, other_server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    other_server.status = 429
    assert main(["compare", server.url, other_server.url, *SHORT]) == 1
    assert "can't compare the vectors" in capsys.readouterr().err
