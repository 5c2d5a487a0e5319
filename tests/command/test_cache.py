import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedserve_client.command.main import main
from serve_app.cache.report import CacheReport, MemoryStats, ModelCacheStats, StoreStats, WarmResult
from serve_app.command import cache as cache_command
from serve_app.command import cache_warm
from serve_app.errors import EmbedServeError, InferenceError, Overloaded
from serve_app.types import CacheState
from tests.clients.app_server import run_app_server

REPORT = CacheReport(
    MemoryStats(hits=30, misses=10, evictions=1, entries=5, bytes=1 << 20),
    CacheState("degraded", "no connection", "redis"),
    StoreStats(entries=7, bytes=2 << 20, max_bytes=0, hits=0, misses=0, evictions=0),
)


class FakeServe:
    """Ray Serve with one application: the part that the commands use."""

    def __init__(self, responses: Sequence[Any] = ()) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.responses = list(responses)
        self.deployments = ["Ingress", "CacheLookup"]

    def status(self) -> Any:
        return SimpleNamespace(applications={"embedserve": self})

    def get_app_handle(self, name: str) -> Any:
        return SimpleNamespace(warm=SimpleNamespace(remote=self._warm))

    def get_deployment_handle(self, deployment: str, application: str) -> Any:
        def broadcast(method: str, *args: Any) -> Any:
            self.calls.append((f"{deployment}.{method}", args))
            return SimpleNamespace(results=lambda timeout_s: [self.responses.pop(0)])

        return SimpleNamespace(broadcast=broadcast)

    def _warm(self, texts: list[str], input_type: str | None, model: str | None) -> Any:
        self.calls.append(("warm", (texts, input_type, model)))
        response = (
            self.responses.pop(0) if self.responses else WarmResult(len(texts), len(texts) // 2)
        )
        return SimpleNamespace(result=lambda timeout_s: response)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    fake = FakeServe()
    for module in (cache_command, cache_warm):
        monkeypatch.setattr(module, "connect", lambda address: fake)
    return fake


def write_lines(directory: Path, *content: str) -> str:
    file = directory / "texts.jsonl"
    file.write_text("\n".join(content), "utf-8")
    return str(file)


def test_warm_sends_every_text_once_and_counts(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"text {i}" for i in range(1000)]
    file = write_lines(tmp_path, *(json.dumps({"body": text}) for text in texts), "", '"last"')
    assert (
        main(["cache", "warm", file, "--field", "body", "--input-type", "query", "--model", "m"])
        == 0
    )
    assert [text for _, (call, *_) in serve.calls for text in call] == [*texts, "last"]
    assert {tuple(options) for _, (_, *options) in serve.calls} == {("query", "m")}
    output = capsys.readouterr()
    assert "1001 texts in" in output.out
    assert "500 computed, 501 already cached" in output.out
    assert "1001/1001 100 %" in output.err


def test_a_call_to_an_overloaded_service_is_repeated(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.responses = [Overloaded("full", 0), Overloaded("full", 0), WarmResult(1, 1)]
    assert main(["cache", "warm", write_lines(tmp_path, '"a"')]) == 0
    assert serve.calls == [("warm", (["a"], None, None))] * 3
    assert "1 computed" in capsys.readouterr().out


def test_another_error_ends_the_command_with_its_message(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.responses = [InferenceError("The model broke.")]
    assert main(["cache", "warm", write_lines(tmp_path, '"a"')]) == 1
    assert "The model broke." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 isn't JSON"),
        ('""', "line 2: the text is empty"),
        ('{"text": ""}', "line 2: `text` is empty"),
        ('{"txt": "a"}', "line 2: `text` is not a string"),
        ("3", "line 2: the text is not a string"),
    ],
)
def test_an_invalid_line_is_an_error_before_the_first_call(
    serve: FakeServe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    assert main(["cache", "warm", write_lines(tmp_path, '"a"', line)]) == 1
    assert message in capsys.readouterr().err
    assert serve.calls == []


LOGS = {
    "log.jsonl": '{"at": "12:00", "query": "b"}\n"a"\n{"query": "b"}\n"c"\n"a"\n"b"\n',
    "log.csv": 'at,query\r\n12:00,b\r\n,a\r\n,b\r\n,c\r\n,"a"\r\n,b\r\n',
    "log.tsv": "\ufeffquery\tat\nb\t12:00\na\t\nb\t\nc\t\na\t\nb\t\n",
    "log.txt": "b\na\n\nb\nc\na\nb",
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize(
    ("options", "expected", "share"),
    [
        ([], ["b", "a", "c"], "100.0 %"),
        (["--top", "1"], ["b"], "50.0 %"),
        (["--by-frequency", "--top", "2"], ["b", "a"], "83.3 %"),
    ],
)
def test_each_text_of_a_query_log_is_sent_once(
    serve: FakeServe,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
    expected: list[str],
    share: str,
) -> None:
    file = tmp_path / name
    file.write_bytes(LOGS[name].encode())
    assert main(["cache", "warm", str(file), *options]) == 0
    assert serve.calls == [("warm", (expected, None, None))]
    output = capsys.readouterr().out
    assert "6 texts, 3 of them distinct" in output
    assert share in output


def test_the_most_frequent_texts_come_first_wherever_they_are(
    serve: FakeServe, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    file.write_text("rare\ncommon\n3\ncommon\n")
    assert main(["cache", "warm", str(file), "--format", "text", "--by-frequency"]) == 0
    assert serve.calls == [("warm", (["common", "rare", "3"], None, None))]


def test_a_column_may_hold_line_breaks_and_be_named(serve: FakeServe, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text('text,asked\nno,"two\nlines"\n')
    assert main(["cache", "warm", str(file), "--field", "asked"]) == 0
    assert serve.calls == [("warm", (["two\nlines"], None, None))]


def test_lines_without_a_text_may_be_left_out(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path, '"a"', "{", '{"txt": "b"}', '"c"')
    assert main(["cache", "warm", file]) == 1
    assert "add `--format text`" in capsys.readouterr().err
    assert main(["cache", "warm", file, "--skip-invalid"]) == 0
    assert serve.calls == [("warm", (["a", "c"], None, None))]
    assert "2 lines without a valid text were left out" in capsys.readouterr().out


def test_a_column_that_the_file_does_not_have_is_an_error(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.csv"
    file.write_text("at,q\n1,b\n")
    assert main(["cache", "warm", str(file), "--field", "query"]) == 1
    assert "line 2: `query` is not a string" in capsys.readouterr().err
    assert main(["cache", "warm", str(file), "--field", "q"]) == 0


def test_warm_over_http_needs_no_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(tmp_path, *(json.dumps(f"text {i % 300}") for i in range(600)))
    with run_app_server() as server:
        options = ["--input-type", "query", "--model", "hashing", "--url", server.url]
        assert main(["cache", "warm", file, *options]) == 0
        assert main(["cache", "warm", file, "--url", server.url, "--input-type", "no"]) == 1
    groups = server.backend.groups
    sent = sorted(str(text) for group in groups for text in group.texts)
    assert sent == sorted(f"text {i}" for i in range(300))
    assert {(group.prompt, group.lane) for group in groups} == {("query: ", "bulk")}
    output = capsys.readouterr()
    assert "300 computed, 0 already cached" in output.out
    assert "no input type 'no'" in output.err


def test_a_missing_file_is_an_error(serve: FakeServe, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "warm", "/nowhere.jsonl"]) == 1
    assert "Can't read /nowhere.jsonl" in capsys.readouterr().err


def test_a_missing_application_is_an_error(
    serve: FakeServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "warm", write_lines(tmp_path, '"a"'), "--app", "other"]) == 1
    assert "No application 'other' is running; running: embedserve." in capsys.readouterr().err


def test_stats_shows_each_tier(serve: FakeServe, capsys: pytest.CaptureFixture[str]) -> None:
    serve.responses = [REPORT._replace(store=None, state=CacheState("off")), REPORT]
    assert main(["cache", "stats"]) == 0
    output = capsys.readouterr().out
    assert output.count("75.0") == 2
    assert "embedserve server (redis)" in output
    assert "the shared server is down: no connection" in output


def test_stats_shows_each_of_several_models(
    serve: FakeServe, capsys: pytest.CaptureFixture[str]
) -> None:
    models = (ModelCacheStats("words", 1, 2, 1), ModelCacheStats("others", 0, 0, 0))
    serve.responses = [REPORT._replace(models=models), REPORT._replace(models=models[:1])]
    assert main(["cache", "stats"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert ["words", "", "", "3", "1", "75.0", ""] in cells
    assert ["others", "", "", "0", "0", "-", ""] in cells
    assert len([row for row in cells if row[0] == "words"]) == 1


def test_stats_as_json(serve: FakeServe, capsys: pytest.CaptureFixture[str]) -> None:
    serve.responses = [REPORT, REPORT]
    assert main(["cache", "stats", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["deployment"], second["deployment"]) == ("Ingress", "CacheLookup")
    assert first["memory"]["hits"] == 30
    assert first["shared"]["server"]["entries"] == 7


def test_purge_starts_at_the_tier_next_to_the_engine(
    serve: FakeServe, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.responses = [3, 2]
    assert main(["cache", "purge", "--model", "m"]) == 0
    assert serve.calls == [("CacheLookup.purge_cache", ("m",)), ("Ingress.purge_cache", ("m",))]
    assert "5 vectors deleted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("responses", "arguments", "message"),
    [
        ([None, None], ["--model", "m"], "No service serves 'm'"),
        ([EmbedServeError("The server is down."), 1], [], "The server is down."),
    ],
)
def test_a_purge_without_effect_is_an_error(
    serve: FakeServe,
    capsys: pytest.CaptureFixture[str],
    responses: list[Any],
    arguments: list[str],
    message: str,
) -> None:
    serve.responses = responses
    assert main(["cache", "purge", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_no_running_service_is_an_error(
    serve: FakeServe, capsys: pytest.CaptureFixture[str]
) -> None:
    serve.deployments = []
    assert main(["cache", "stats"]) == 1
    assert "No service is running" in capsys.readouterr().err
    assert main(["cache", "purge"]) == 1
