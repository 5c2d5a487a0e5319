"""The command, on its own event loop, against a plain threaded server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from benchmarks.target import DIALECTS
from benchmarks.workloads import WORKLOADS
from serve_app.cli import main
from serve_app.launch import free_port


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, object]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, json.loads(body)))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Answers.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


SHORT = ["--duration", "0.5", "--warmup", "0.1", "--connections", "2"]


@pytest.mark.parametrize("rate", [[], ["--rate", "50"]], ids=["closed loop", "open loop"])
def test_the_last_line_is_the_record(
    url: str, rate: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", url, *SHORT, *rate]) == 0
    shown = capsys.readouterr().out.splitlines()
    entry = json.loads(shown[-1])
    assert entry["failed"] == {}
    assert entry["answered"] > 5
    assert (entry["workload"], entry["url"]) == ("query", url)
    assert any("p99 ms" in line for line in shown)


@pytest.mark.parametrize(
    ("dialect", "path", "field"),
    [
        ("openai", "/v1/embeddings", "input"),
        ("infinity", "/embeddings", "input"),
        ("tei", "/embed", "inputs"),
    ],
)
def test_each_dialect_asks_in_its_own_words(url: str, dialect: str, path: str, field: str) -> None:
    assert dialect in DIALECTS
    assert main(["bench", url, *SHORT, "--dialect", dialect, "--workload", "document"]) == 0
    assert {asked_path for asked_path, _ in Answers.asked} == {path}
    body = Answers.asked[0][1]
    assert isinstance(body, dict)
    assert len(body[field]) == 32


def test_nobody_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"http://127.0.0.1:{free_port()}", *SHORT]) == 1
    assert "nothing answers at" in capsys.readouterr().err


def test_the_command_offers_every_workload_and_dialect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*WORKLOADS, *DIALECTS))
