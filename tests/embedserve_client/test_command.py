"""The command `embedserve`, in this process and as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedserve_client import __version__
from embedserve_client.command import backend_options
from embedserve_client.command import main as command
from embedserve_client.command.main import main
from tests.embedserve_client.scripted_server import (
    SPACE,
    Handler,
    ScriptedServer,
    error,
    vector,
    vectors,
)

ROOT = Path(__file__).parents[2]
ONE_LINE = str(ROOT / "tests" / "embedserve_client" / "one_line.txt")
TEXTS = [f"text {i}" for i in range(600)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in TEXTS))
    return file


def expected() -> Any:
    return np.array([vector(text) for text in TEXTS], dtype=np.float32)


def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "embedserve_client.command.main", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )


def test_embed_writes_vectors_and_prints_a_summary(
    server: ScriptedServer, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(texts), "--url", server.url, "--input-type", "query"]) == 0
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())
    printed = " ".join(capsys.readouterr().err.split())
    assert f"Wrote 600 vectors in space {SPACE} to {texts.with_suffix('.npy')}" in printed
    assert {body["input_type"] for body in server.bodies} == {"query"}
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}


def test_model_option(
    server: ScriptedServer, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", str(texts), "--url", server.url, "--model", "m", "--quiet"]) == 0
    assert {body["model"] for body in server.bodies} == {"m"}
    for name in ("health", "info"):
        main([name, "--url", server.url, "--model", "a b"])
    assert server.paths[-2:] == ["/health?model=a+b", "/info?model=a+b"]
    output = str(texts.with_name("local.npy"))
    assert main(["embed", str(texts), "-o", output, "--local", "x", "--model", "m"]) == 1
    assert "`--local MODEL` names a local one" in capsys.readouterr().err


def test_embed_prints_the_summary_as_json(
    server: ScriptedServer, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(texts.with_name("out.jsonl"))
    assert main(["embed", str(texts), "-o", output, "--url", server.url, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["output"], summary["rows"], summary["space"]) == (output, 600, SPACE)


def test_standard_input_to_standard_output(server: ScriptedServer) -> None:
    process = start("embed", "-", "--url", server.url, "--batch-size", "7", "--quiet")
    out, err = process.communicate("".join(f"{text}\n" for text in TEXTS), timeout=60)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert np.array_equal(np.float32([row["embedding"] for row in rows]), expected())  # type: ignore[arg-type]
    assert (process.returncode, err) == (0, "")


def test_closed_output_pipe_is_no_traceback(server: ScriptedServer, tmp_path: Path) -> None:
    # More than a pipe holds, so the process can't finish before its reader is gone.
    file = tmp_path / "long.txt"
    file.write_text("".join(f"{i} {'x' * 1000}\n" for i in range(600)))
    process = start("embed", str(file), "-o", "-", "--url", server.url, "--batch-size", "10")
    assert process.stdin
    assert process.stdout
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr
    with process.stderr:
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_interrupted_run_resumes(
    server: ScriptedServer, texts: Path, number: signal.Signals
) -> None:
    """After a signal, the same command gives each text its vector, exactly once."""
    journal = texts.with_name("texts.npy.journal")
    ended = threading.Event()

    def respond_until_saved(handler: Handler) -> None:
        time.sleep(0.1)  # the job saves after 2 s, and needs 3 s for all 60 batches
        if journal.exists():
            ended.wait(120)  # so the run can't finish before the signal
        vectors()(handler)

    server.script = [respond_until_saved] * 60
    command_line = ("embed", str(texts), "--url", server.url)
    options = ("--batch-size", "10", "--concurrency", "2")
    process = start(*command_line, *options)
    deadline = time.monotonic() + 60
    while not journal.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    ended.set()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Run the same command to resume" in " ".join(err.split())
    done = json.loads(journal.read_text())["progress"]["records"]
    assert 0 < done < 600
    server.script = []
    # The server may still be reading requests of the first run. The key marks those of the second.
    process = start(*command_line, *options, EMBEDSERVE_API_KEY="second")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"resumed after record {done}" in " ".join(err.split())
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())
    requests = zip(server.headers, server.bodies, strict=True)
    second = [body for headers, body in requests if headers.get("authorization") == "Bearer second"]
    assert sorted(text for body in second for text in body["input"]) == sorted(TEXTS[done:])


def test_embed_waits_for_an_unavailable_service(server: ScriptedServer, texts: Path) -> None:
    server.script = [error(503, retry_after="0")] * 8
    assert main(["embed", str(texts), "--url", server.url, "--quiet"]) == 0
    assert np.array_equal(np.load(texts.with_suffix(".npy")), expected())


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["health", "--url", "http://127.0.0.1:9"], 3, "Can't connect to 127.0.0.1:9"),
        (["embed", "/no/file"], 1, "There is no file /no/file"),
        (["embed", "/no/file", "--url", "x", "--local"], 2, "not allowed with"),
        (["embed", __file__, "-o", "x.py"], 1, "must end in .npy"),
        (["embed", __file__, "--batch-size", "0"], 2, "0 is less than 1"),
        (["embed", ONE_LINE, "--local", "/no/model", "-o", "-"], 1, "There is no model"),
        (["health", "--url", "localhost"], 1, "isn't a valid URL"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_errors_have_a_message_and_an_exit_status(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    try:
        result = main(arguments)
    except SystemExit as exit_error:  # raised by argparse
        result = int(str(exit_error.code))
    assert result == status
    assert message in capsys.readouterr().err


def test_json_option_prints_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--url", "http://127.0.0.1:9", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "NETWORK_ERROR"


def test_health_sets_the_exit_status(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--url", server.url]) == 0
    server.healthy = False
    assert main(["health", "--url", server.url, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"status": "unavailable"}


def test_missing_service_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "entry_points", lambda group: [])
    assert main(["serve"]) == 1
    assert "`serve` is part of the service: pip install embedserve" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "embed " in printed
    assert "prepare" not in printed


@pytest.mark.parametrize("name", ["embed", "stdio", "health", "info", "models"])
def test_commands_of_the_client_dont_wait_for_the_imports_of_others(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "entry_points", lambda group: pytest.fail("loads plugins"))
    with pytest.raises(SystemExit, match="0"):
        main([name, "--help"])
    assert f"embedserve {name}" in capsys.readouterr().out


def test_plugins_are_listed_by_name_whatever_the_order_of_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for names in (["alpha", "beta"], ["beta", "alpha"]):
        points = []
        for name in names:
            plugin = SimpleNamespace(
                EXAMPLES=f"  embedserve {name} example\n",
                ERRORS=(),
                add_commands=lambda commands, name=name: commands.add_parser(name, help=name),
            )
            monkeypatch.setitem(sys.modules, f"{name}_plugin", plugin)
            points.append(EntryPoint(name, f"{name}_plugin", "embedserve.commands"))
        monkeypatch.setattr(command, "entry_points", lambda group, points=points: points)
        with pytest.raises(SystemExit):
            main(["--help"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    examples = [printed[0].index(f"embedserve {name} example") for name in ("alpha", "beta")]
    assert examples == sorted(examples)


def test_distributions_have_the_same_version() -> None:
    from serve_app import __version__ as service_version

    assert __version__ == service_version


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("embed", "stdio", "health", "info", "models", "serve"):
        with pytest.raises(SystemExit) as exited:
            main([name, "--help"])
        assert exited.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "config", "use_ray"),
    [
        (["--start"], None, False),
        (["--start", "my.yaml"], "my.yaml", False),
        (["--start-on-ray"], None, True),
        (["--start-on-ray", "my.yaml"], "my.yaml", True),
    ],
)
def test_start_runs_a_service_in_one_process_or_on_ray(
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    config: str | None,
    use_ray: bool,
) -> None:
    started: list[tuple[Any, ...]] = []

    @contextmanager
    def supervisor(
        port: int, *, config: str | None, use_ray: bool, on_progress: object
    ) -> Iterator[SimpleNamespace]:
        started.append((port, config, use_ray))
        yield SimpleNamespace(url=server.url)

    monkeypatch.setattr(backend_options, "Supervisor", supervisor)
    monkeypatch.setenv("EMBEDSERVE_URL", "http://127.0.0.1:8123")
    assert main(["embed", ONE_LINE, "-o", "-", *options]) == 0
    assert started == [(8123, config, use_ray)]
