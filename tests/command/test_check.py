"""`embedserve check` against a service that works, and against ones that don't."""

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.command.ports import free_port
from serve_app.command.service_process import ServiceProcess

KEY = "es-key"
#: Changes the body of a reply: path, JSON → JSON.
Change = Callable[[str, Any], Any]
DIALECTS = {
    *("OpenAI", "OpenAI engines", "Azure OpenAI", "KServe", "NIM", "Infinity", "Cohere", "Ollama"),
    *("text-embeddings-inference", "Open Inference Protocol", "Weaviate", "sidecar"),
    *("search product", "document backend"),
}
HASHING: dict[str, object] = {"name": "words", "source": "hashing:64"}
OTHERS = {"health", "info", "usage", "cache", "1,000 texts", "metrics"}
OPTIONAL = {"keys", "other models", "reference vectors"}


@contextmanager
def running_service(
    folder: Path, models: Sequence[dict[str, object]] = (HASHING,), **access: object
) -> Iterator[str]:
    port = free_port()
    deployment = {"name": "EmbedServer", "user_config": {"access": access}}
    args = {"models": [*models], "cache": {"url": "none"}}
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{"name": "embedserve", "args": args, "deployments": [deployment]}],
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    command = (sys.executable, "-m", "serve_app.command.main", "serve", "--standalone", str(file))
    process = ServiceProcess(command, f"http://127.0.0.1:{port}")
    process.start()
    try:
        list(process.wait_until_ready(timeout_s=60))
        yield process.url
    finally:
        process.stop()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_service(tmp_path_factory.mktemp("open")) as url:
        yield url


@pytest.fixture(scope="module")
def guarded_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    keys = [{"name": "a", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    with running_service(tmp_path_factory.mktemp("guarded"), keys=keys) as url:
        yield url


@contextmanager
def changed(url: str, change: Change) -> Iterator[str]:
    """Yields the URL of a proxy that changes the replies of a service."""
    client = httpx2.Client(base_url=url, timeout=60)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            kept = ("accept", "authorization", "content-type", "x-priority")
            reply = client.request(
                self.command,
                self.path,
                content=self.rfile.read(length) or None,
                headers={n: value for n, value in self.headers.items() if n.lower() in kept},
            )
            content = reply.content
            if reply.headers.get("content-type", "").startswith("application/json"):
                content = json.dumps(change(self.path, json.loads(content))).encode()
            self.send_response(reply.status_code)
            for name, value in reply.headers.items():
                if name not in ("content-length", "content-encoding", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, client:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def check(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, tuple[str, str]]]:
    """Runs the command; returns its exit status, and for each check its state and remark."""
    status = main(["check", "--json", *arguments])
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] == (status == 0)
    return status, {c["name"]: (c["state"], c["remark"]) for c in report["checks"]}


def states(outcomes: dict[str, tuple[str, str]], state: str) -> set[str]:
    return {name for name, outcome in outcomes.items() if outcome[0] == state}


def test_a_service_without_keys(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, outcomes = check(capsys, url)
    assert status == 0
    assert states(outcomes, "ok") == DIALECTS | OTHERS
    assert states(outcomes, "skipped") == OPTIONAL
    assert outcomes["keys"][1] == "the service needs no keys"
    assert "all-MiniLM-L6-v2" in outcomes["reference vectors"][1]


def test_a_service_with_keys(guarded_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, outcomes = check(capsys, guarded_url, "--key", KEY)
    assert status == 0
    assert states(outcomes, "ok") == DIALECTS | OTHERS | {"keys"}


def test_a_service_with_several_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first: dict[str, object] = {"name": "first", "source": "hashing:16"}
    models = [first, HASHING | {"default_for": ["embed"]}]
    with running_service(tmp_path, models) as url:
        status, outcomes = check(capsys, url)
        assert main(["models", "status", url, "--json"]) == 0
    assert status == 0
    assert "words, 64 dimensions" in outcomes["info"][1]
    assert states(outcomes, "ok") == DIALECTS | OTHERS | {"other models"}
    assert outcomes["other models"][1] == "first: 16 dimensions"
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["kind"], row["state"]) for row in rows] == [
        ("first", "dense", "ok"),
        ("words", "dense", "ok"),
    ]
    assert all(row["replicas"] == row["loaded"] == 1 for row in rows)
    assert all(10e6 < row["memory_bytes"] < 100e9 for row in rows)


def test_the_lines_and_the_verdict_for_people(
    guarded_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_API_KEY", KEY)
    monkeypatch.setenv("EMBEDSERVE_URL", guarded_url)
    assert main(["check"]) == 0
    *lines, verdict = capsys.readouterr().out.splitlines()
    names = DIALECTS | OTHERS | OPTIONAL
    assert len(lines) == len(names)
    for line in lines:
        state, rest = line.split(maxsplit=1)
        assert state in ("ok", "skipped")
        assert any(rest.startswith(f"{name} ") and " s  " in rest for name in names), line
    assert verdict.split(maxsplit=1) == ["verdict", f"the service at {guarded_url} works"]
    assert not any(KEY in line for line in lines)


def test_a_missing_key(guarded_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, outcomes = check(capsys, guarded_url)
    assert status == 1
    assert states(outcomes, "failed") == {"info"}
    assert "pass it with --key" in outcomes["info"][1]
    assert states(outcomes, "ok") == {"health"}


def with_faults(path: str, reply: Any) -> Any:
    """Changes replies so that several checks must fail, each at one place."""
    if path == "/api/embed":
        reply["embeddings"][0][0] += 0.1
    if path == "/embeddings":
        reply["usage"]["prompt_tokens"] += 1
    if path == "/v1/embeddings":
        reply["usage"]["cached_tokens"] = 0
    if path == "/vectors":
        return {}
    if path == "/info":
        default = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        reply["weights_sha256"] = default  # of the model with the reference vectors
    return reply


def test_faults_are_found_and_nothing_is_changed(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []

    def change(path: str, reply: Any) -> Any:
        paths.append(path)
        return with_faults(path, reply)

    with changed(url, change) as proxy:
        status, outcomes = check(capsys, proxy)
    assert status == 1
    messages = {
        "Ollama": "the vector differs from the client's by 0",
        "Weaviate": "the reply has no vector",
        "usage": "the dialects count different tokens",
        "cache": "0 of",
        "reference vectors": "vectors of shape (8, 64)",
    }
    assert states(outcomes, "failed") == {*messages}
    for name, message in messages.items():
        assert message in outcomes[name][1]
    assert "/embed/metrics" in paths
    assert "/embed/metrics/reset" not in paths


def test_a_401_in_another_form_is_found(
    guarded_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_form(path: str, reply: Any) -> Any:
        return {"error": "no"} if path == "/v2/embed" and "message" in reply else reply

    with changed(guarded_url, other_form) as proxy:
        _, outcomes = check(capsys, proxy, "--key", KEY)
    assert states(outcomes, "failed") == {"keys"}
    assert "/v2/embed: the 401 isn't in the form of Cohere" in outcomes["keys"][1]


def test_an_unreachable_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "http://127.0.0.1:9"]) == 3
    assert "Can't connect to 127.0.0.1:9" in capsys.readouterr().err


def test_another_server(capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        status, outcomes = check(capsys, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert status == 1
    assert states(outcomes, "failed") == {"info"}
