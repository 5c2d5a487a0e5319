"""`embedserve autoscale explain`, against a service with fixed decisions."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from embedserve_client.command.main import main
from serve_app.autoscale.decision_log import DecisionLog
from serve_app.autoscale.fleet_load import sum_reports
from serve_app.autoscale.policy import Bounds, Decision
from serve_app.autoscale.scaling_record import ScalingRecord
from serve_app.config import PolicySettings


def record(unix: float) -> ScalingRecord:
    """Returns a decision of a policy with the default settings."""
    log = DecisionLog("Embedder", PolicySettings().model_dump(exclude_none=True))
    return log.add(
        Decision(3, "2,100 tokens/s arrive", "arrivals", {"arrivals": 3, "queue": 1}),
        sum_reports({}, 2),
        target=2,
        bounds=Bounds(1, 4, room=9),
        arrivals=2100.0,
        now_s=unix,
    )


class FakeService(ThreadingHTTPServer):
    """Answers every request with the same status and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, {"deployments": list[Any]()}
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, FakeService)
        body = json.dumps(self.server.body).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
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


def test_it_says_which_term_decides_and_what_has_changed(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.body["deployments"] = [record(time.time())]
    assert main(["autoscale", "explain", service.url]) == 0
    output = capsys.readouterr().out
    assert "Embedder: 3 replicas, 2 run. 2,100 tokens/s arrive" in output
    assert "3 ←" in output
    assert "2 → 3  2,100 tokens/s arrive" in output
    assert "controller" not in output


def test_an_old_decision_is_marked(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.body["deployments"] = [record(time.time() - 3600)]
    assert main(["autoscale", "explain", service.url]) == 0
    assert "Ray's controller doesn't run" in " ".join(capsys.readouterr().out.split())


def test_json_is_what_the_service_reports(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.body["deployments"] = [record(1.0)]
    assert main(["autoscale", "explain", service.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == service.body["deployments"]


def test_a_service_that_does_not_scale_says_how_to_change_it(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["autoscale", "explain", service.url]) == 0
    assert "serve_app.autoscale:TokenPolicy" in capsys.readouterr().out


def test_a_service_without_the_route_is_an_error(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.status = 404
    assert main(["autoscale", "explain", service.url]) != 0
    assert "HTTP 404" in " ".join(capsys.readouterr().err.split())
