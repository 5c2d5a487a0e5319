"""`embedserve top` without a terminal: one frame, JSON, and errors that say what to do."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embedserve_client.command.main import main
from serve_app.command.live_stream import Disconnected, LiveStream, NoSnapshot
from serve_app.live.summary import summarize
from tests.live.samples import fleet, replica

SNAPSHOT = summarize(None, fleet(replica()), [], topology="standalone", unix=1.0)
EVENTS = "text/event-stream"


class FakeService(ThreadingHTTPServer):
    """Answers requests in turn with these replies, and from then on with the last one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, str, bytes]] = []
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def reply(self, status: int, body: Any, content_type: str = "application/json") -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.replies.append((status, content_type, content))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, FakeService)
        self.server.requests.append((self.path, self.headers["authorization"]))
        replies = self.server.replies
        status, content_type, body = replies[0] if len(replies) == 1 else replies.pop(0)
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("retry-after", "1")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keeps standard error empty."""


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_without_a_terminal_it_prints_one_frame(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.reply(200, SNAPSHOT)
    assert main(["top", service.url]) == 0
    output = capsys.readouterr().out
    assert "standalone" in output
    assert "requests/s" in output
    assert "\x1b" not in output
    assert "quit" not in output
    assert service.requests == [("/live?once=true&interval_s=1", None)]


def test_json_is_the_snapshot_in_one_line(
    service: FakeService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_API_KEY", "secret")
    service.reply(200, SNAPSHOT)
    assert main(["top", service.url, "--json", "--interval", "0.5"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == SNAPSHOT
    assert service.requests == [("/live?once=true&interval_s=0.5", "Bearer secret")]


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, {"error": {"message": "No key."}}, "pass one with --key"),
        (404, {"detail": "Not Found"}, "update the service"),
        (429, {"error": {"message": "32 clients listen already."}}, "32 clients listen already."),
        (503, b"<html>", "HTTP 503"),
        (200, b"<html>", "Check the URL"),
        (200, {"version": "0.0.1"}, "same version"),
    ],
)
@pytest.mark.parametrize("option", ["--once", "--json"])
def test_an_error_is_one_line_that_says_what_to_do(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    status: int,
    body: Any,
    advice: str,
    option: str,
) -> None:
    service.reply(status, body)
    assert main(["top", service.url, option, "--key", "secret"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert advice in line
    assert service.url in line
    assert "secret" not in captured.err + captured.out


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeService() as server:
        url = server.url
    assert main(["top", url, "--once"]) == 3  # as for other commands
    assert "Can't connect" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0.4", "11", "nan", "soon"])
def test_a_wrong_interval_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["top", "--interval", seconds])
    assert caught.value.code == 2
    assert "--interval" in capsys.readouterr().err


def event(snapshot: Any) -> bytes:
    return b": still here\n\ndata: " + json.dumps(snapshot).encode() + b"\n\n"


async def test_a_stream_that_ends_is_opened_again(service: FakeService) -> None:
    service.reply(200, event(SNAPSHOT) + event(SNAPSHOT), EVENTS)
    service.reply(503, {"error": {"message": "The service is shutting down."}})
    service.reply(200, event(SNAPSHOT), EVENTS)
    events = LiveStream(service.url, None, 1.0).events()
    received = [await anext(events) for _ in range(4)]
    await events.aclose()
    assert received[0] == received[1] == received[3] == SNAPSHOT
    assert isinstance(received[2], Disconnected)
    assert "The service is shutting down." in received[2].reason


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (401, {}, "application/json"),
        (200, b"data: {}\n\n", EVENTS),
        (200, b"<html>", "text/html"),
    ],
)
async def test_a_stream_that_another_attempt_would_not_mend_ends(
    service: FakeService, status: int, body: Any, content_type: str
) -> None:
    service.reply(200, event(SNAPSHOT), EVENTS)
    service.reply(status, body, content_type)
    events = LiveStream(service.url, "key", 1.0).events()
    assert await anext(events) == SNAPSHOT
    with pytest.raises(NoSnapshot):
        await anext(events)
    assert service.requests[1] == ("/live?interval_s=1", "Bearer key")
